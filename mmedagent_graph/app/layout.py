"""What stands on the page: its components, and where. What they do is `mmedagent_graph.app.room`'s."""

import functools

import gradio as gr

AS_BUILT = "as built"
DISCLAIMER = (
    '<p id="disclaimer"><strong>Research software, no medical device.</strong> '
    "Do not use it to diagnose or treat anybody.</p>"
)
html = functools.partial(gr.HTML, apply_default_css=False, js_on_load=None)
"""Markup of our own making; Gradio's typography is for articles."""
REMOVING = """
element.addEventListener('click', (event) => {
    const button = event.target.closest('[data-ref]');
    if (button) trigger('click', {ref: button.dataset.ref});
});
"""
UNFOLDED = """
const unfolded = new WeakSet();  // Gradio redraws an attribute at a time, and would fold what a reader has unfolded
element.addEventListener('click', (event) => {
    const details = event.target.closest('summary')?.parentElement;
    if (details) details.open ? unfolded.delete(details) : unfolded.add(details);
});
new MutationObserver((changes) => {
    for (const {target} of changes) if (unfolded.has(target) && !target.open) target.open = true;
}).observe(element, {attributes: true, attributeFilter: ['open'], subtree: true});
"""
TO_THE_CHART = """() => {
    const calm = matchMedia('(prefers-reduced-motion: reduce)').matches;
    if (matchMedia('(max-width: 860px)').matches)
        document.querySelector('#middle').scrollIntoView({behavior: calm ? 'auto' : 'smooth'});
}"""


class Layout:
    """The components of the page.

    Args:
        chart: the empty chart.
        drawing: the graph's picture.
        changeable: whether a run can change the graph's votes.
        examples: whether there are example cases.
    """

    def __init__(self, chart: str, drawing: str, changeable: bool, examples: bool) -> None:
        with gr.Blocks(title="Consulting room", analytics_enabled=False, delete_cache=(600, 600)) as self.page:
            html("<h1>Consulting room</h1>", elem_id="head")
            with gr.Row(elem_id="room"):
                with gr.Column(elem_id="left"):
                    self._lay_out_form(changeable, examples)
                with gr.Column(elem_id="middle"):
                    self.chart = html(chart, elem_id="chart", js_on_load=UNFOLDED)
                    self._lay_out_review()
                with gr.Column(elem_id="right"):
                    self.drawing = html(drawing, elem_id="drawing")
            html(DISCLAIMER, elem_id="foot")

    def _lay_out_form(self, changeable: bool, examples: bool) -> None:
        self.previews = html("", elem_id="previews", js_on_load=REMOVING)
        self.drop = gr.File(label="Images", file_count="multiple", height=96, elem_id="drop", show_label=False)
        with gr.Row(visible=False, elem_id="frames") as self.frames:
            self.frame = gr.Number(label="Frame, from 0", value=0, minimum=0, precision=0, scale=1, min_width=80)
            self.add_frame = gr.Button("Add this frame", size="md", scale=1, min_width=100)
        self.drop_notice = html("")
        self.question = gr.Textbox(label="Question", lines=2, max_lines=6, elem_id="question")
        self.options = gr.Textbox(
            label="Options", info="One a line. None: the answer is free text.", lines=4, max_lines=12, elem_id="options"
        )
        with gr.Accordion("Context and votes" if changeable else "Context", open=False, elem_id="more"):
            self.context = gr.Textbox(
                label="Context", info="What is known beside the images: history, findings.", lines=3, elem_id="context"
            )
            self.votes = gr.Radio(
                [(name, name) for name in (AS_BUILT, "1", "3", "5", "adaptive")],
                value=AS_BUILT,
                label="Votes of the attending",
                info="How often it is asked; the majority wins.",
                elem_id="votes",
                visible=changeable,
            )
        self.notice = html("", elem_id="notice")
        self.consult = gr.Button("Consult", variant="primary", elem_id="consult")
        with gr.Row(elem_id="beside"):
            self.try_example = gr.Button("Example case", size="md", min_width=0, elem_id="example", visible=examples)
            self.clear = gr.Button("Clear", size="md", min_width=0, elem_id="clear")

    def _lay_out_review(self) -> None:
        self.retry = gr.Button("Try again", visible=False, elem_id="retry")
        with gr.Column(visible=False, elem_id="review") as self.review:
            html("<h2>Your review</h2>")
            self.review_notice = html("")
            self.approve = gr.Button("Approve", variant="primary", size="md", elem_id="approve")
            with gr.Row(elem_classes="verdict"):
                self.another = gr.Dropdown(label="Or another answer", elem_id="another", min_width=0)
                self.free = gr.Textbox(label="Or another answer", elem_id="free", min_width=0, visible=False)
                self.why = gr.Textbox(label="Because", placeholder="optional", elem_id="why", min_width=0)
                self.change = gr.Button("Change", size="md", elem_id="change", min_width=90, scale=0)
            with gr.Row(elem_classes="verdict"):
                self.specialty = gr.Dropdown(label="Or hear another specialist", elem_id="specialty", min_width=0)
                self.hear = gr.Button("Hear", size="md", elem_id="hear", min_width=90, scale=0)
