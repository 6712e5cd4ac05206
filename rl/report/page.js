"use strict";
// The browser for traces. What models said reaches the page by textContent alone: nothing here makes markup of a text.
(() => {
  const PAGE = 50; // traces that are put into the list at a time
  const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
  const FILTERS = {
    cases: (trace) => trace.about.set,
    system: (trace) => trace.system,
    seed: (trace) => String(trace.seed),
    tier: (trace) => trace.tier || "none",
    specialty: (trace) => (referred(trace) ? trace.referral.specialty || "unread" : "nobody"),
    outcome: (trace) => (trace.right === null ? "no key" : trace.right ? "right" : trace.read ? "wrong" : "unreadable"),
    flip: (trace) => trace.flip || "not flipped",
  };
  const ORDER = ["easy", "medium", "hard", "right", "wrong", "unreadable", "right to wrong", "wrong to right"];

  const data = JSON.parse(document.getElementById("data").textContent);
  const form = document.getElementById("filter");
  const list = document.getElementById("list");
  const more = document.getElementById("more");
  const count = document.getElementById("count");
  let found = [];
  let shown = 0;

  for (const trace of data.traces) {
    trace.about = data.cases[trace.case];
    trace.words = `${trace.about.id}\n${trace.about.question}`.toLowerCase();
  }

  function make(tag, name, ...children) {
    const element = document.createElement(tag);
    if (name) element.className = name;
    element.append(...children.filter((child) => child !== null && child !== ""));
    return element;
  }

  function said(text, name = "said") {
    const element = make("span", name, text);
    element.dir = "auto";
    return element;
  }

  // Each part by itself: one that turns the direction of writing does not turn its neighbours.
  function joined(parts) {
    return parts.filter(Boolean).flatMap((part, i) => (i ? [" · ", said(part)] : [said(part)]));
  }

  function mark(right) {
    return right === null ? null : make("span", `mark ${right ? "right" : "wrong"}`, right ? "✓ right" : "✗ wrong");
  }

  // A case that names no specialty was either referred to nobody, or a model's answer could not be read.
  function referred(trace) {
    return trace.referral !== null && (trace.referral.specialty !== null || trace.calls.some((call) => call.node === "triage"));
  }

  // The filter

  function place(value) {
    const known = ORDER.indexOf(value);
    return known < 0 ? ORDER.length : known;
  }

  function fill() {
    for (const [name, of] of Object.entries(FILTERS)) {
      const values = [...new Set(data.traces.map(of))];
      values.sort((one, other) => place(one) - place(other) || one.localeCompare(other, "en", { numeric: true }));
      for (const value of values) form.elements[name].append(new Option(value, value));
      form.elements[name].parentElement.hidden = values.length < 2;
    }
  }

  function asked() {
    return [...new FormData(form)].filter(([, value]) => value !== "");
  }

  function apply() {
    const chosen = asked().filter(([name]) => name !== "q");
    const words = form.elements.q.value.toLowerCase().trim();
    found = data.traces.filter(
      (trace) => chosen.every(([name, value]) => FILTERS[name](trace) === value) && trace.words.includes(words),
    );
    count.textContent = `${found.length.toLocaleString("en")} of ${data.traces.length.toLocaleString("en")} traces`;
    shown = 0;
    list.replaceChildren();
    extend();
  }

  function extend() {
    list.append(...found.slice(shown, shown + PAGE).map(entry));
    shown = Math.min(shown + PAGE, found.length);
    more.hidden = shown === found.length;
    more.textContent = `Show ${Math.min(PAGE, found.length - shown)} more of ${found.length - shown}`;
  }

  // The address keeps the filter: `#tier=hard&outcome=wrong`. One without `=` is a part of the page.

  function keep() {
    const hash = new URLSearchParams(asked()).toString();
    history.replaceState(null, "", hash ? `#${hash}` : "#traces");
  }

  function restore() {
    if (location.hash && !location.hash.includes("=")) return false;
    const kept = new URLSearchParams(location.hash.slice(1));
    for (const name of [...Object.keys(FILTERS), "q"]) form.elements[name].value = kept.get(name) || "";
    for (const select of form.querySelectorAll("select")) if (select.selectedIndex < 0) select.selectedIndex = 0;
    return true;
  }

  // One trace, in the list and opened

  function entry(trace) {
    const flipped = trace.flip ? `flipped ${trace.flip}` : null;
    const outcome = FILTERS.outcome(trace);
    const facts = [trace.about.id, trace.about.set, trace.system, trace.tier, FILTERS.specialty(trace), flipped];
    const summary = make(
      "summary",
      "",
      mark(trace.right) || make("span", "mark", outcome),
      said(trace.about.question, "ask"),
      make("span", "facts", ...joined(facts)),
    );
    const details = make("details", "trace", summary);
    details.addEventListener("toggle", () => details.open && details.children.length === 1 && details.append(body(trace)));
    return details;
  }

  function body(trace) {
    const told = make("div", "told", ...question(trace), ...referral(trace), ...opinions(trace), ...decision(trace), ...calls(trace));
    return make("div", "body", make("div", "pictures", ...trace.about.images.map((image, i) => picture(trace, image, i))), told);
  }

  function picture(trace, image, i) {
    const url = data.images[image];
    if (!url) return make("p", "thought", "The image is not in the run’s folder.");
    const element = make("img");
    element.addEventListener("load", () => element.classList.toggle("small", element.naturalWidth < 160));
    element.alt = `Image ${i + 1} of ${trace.about.images.length} of case ${trace.about.id}`;
    element.src = url;
    return element;
  }

  function question(trace) {
    const { question: words, context, options, key, label, groups } = trace.about;
    const decided = trace.decision ? trace.decision.answer : null;
    const lines = options.map((option, i) => {
      const notes = [option === key ? "the key" : null, option === decided ? "decided" : null].filter(Boolean).join(", ");
      const line = make("li", "", `${LETTERS[i] || i + 1}. `, said(option), notes ? " — " : null, make("span", "thought", notes));
      if (option === key) line.classList.add("right");
      return line;
    });
    const known = Object.entries(groups).map(([name, value]) => `${name}: ${value}`);
    if (label) known.unshift(`label: ${label}`);
    return [
      make("h4", "", "Question"),
      make("p", "", said(words)),
      context ? make("p", "thought", said(context)) : null,
      options.length ? make("ol", "", ...lines) : key === null ? null : make("p", "right", "Key: ", said(key)),
      known.length ? make("p", "thought", ...joined(known)) : null,
    ];
  }

  function referral(trace) {
    if (!trace.referral) return [];
    const { specialty, reasoning } = trace.referral;
    const { label } = trace.about;
    return [
      make("h4", "", "Referral"),
      referred(trace)
        ? make("p", "", said(specialty || "unreadable"), " ", label ? mark(specialty === label) : null)
        : make("p", "", "nobody"),
      reasoning ? make("p", "thought", said(reasoning)) : null,
    ];
  }

  function opinions(trace) {
    if (!trace.opinions.length) return [];
    const lines = trace.opinions.map((opinion) =>
      make(
        "li",
        "",
        said(opinion.specialty),
        ` ${opinion.doctor}: `,
        said(opinion.answer === null ? "unreadable" : opinion.answer),
        " ",
        mark(opinion.right),
        opinion.reasoning ? make("div", "thought", said(opinion.reasoning)) : null,
        opinion.error ? make("div", "thought", said(opinion.error)) : null,
      ),
    );
    return [make("h4", "", "Opinions"), make("ul", "", ...lines)];
  }

  function decision(trace) {
    const made = trace.decision;
    if (!made) return [];
    const facts = [
      made.agreement === null ? null : `${Math.round(100 * made.agreement)} % of ${made.opinions} opinions agree`,
      made.confidence === null ? null : `confidence ${made.confidence.toFixed(2)} of ${made.votes} votes`,
      made.votes > 1 ? made.tally.map((told) => `${told.answer}: ${told.votes}`).join(", ") : null,
      trace.flip ? `flipped ${trace.flip} against the majority` : null,
    ];
    return [
      make("h4", "", "Decision"),
      make("p", "", said(made.answer === null ? (made.abstained ? "abstained" : "unreadable") : made.answer), " ", mark(trace.right)),
      made.reasoning ? make("p", "thought", said(made.reasoning)) : null,
      make("p", "thought", ...joined(facts)),
    ];
  }

  function calls(trace) {
    if (!trace.calls.length) return [];
    const sum = (name) => trace.calls.reduce((total, call) => total + (call[name] || 0), 0);
    const total = `${sum("input_tokens").toLocaleString("en")} tokens read, ${sum("output_tokens").toLocaleString("en")} written`;
    return [make("h4", "", `Calls: ${trace.calls.length}, ${total}`), ...trace.calls.map(call)];
  }

  function call(told) {
    const who = [told.node, told.specialty, told.doctor || told.vote].filter(Boolean).join(" ");
    const spent = told.input_tokens === null && told.output_tokens === null ? null : `${told.input_tokens} + ${told.output_tokens} tokens`;
    const seconds = told.seconds === null ? null : `${told.seconds.toFixed(2)} s`;
    const ended = told.finish === "length" ? "cut off" : null;
    const facts = [who, told.model, spent, seconds, told.cached ? "cached" : null, ended];
    const text = make("pre", "", told.text);
    text.dir = "auto";
    text.tabIndex = 0;
    return make("details", "call", make("summary", "", ...joined(facts)), text);
  }

  fill();
  restore();
  apply();
  form.addEventListener("input", () => { apply(); keep(); });
  form.addEventListener("reset", () => setTimeout(() => { apply(); keep(); }));
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => {
    const first = shown;
    extend();
    list.children[first].firstElementChild.focus();
  });
  window.addEventListener("hashchange", () => { if (restore()) apply(); });
})();
