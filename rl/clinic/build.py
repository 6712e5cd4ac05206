"""Make the clinic's base checkpoint: a tiny Qwen2.5-VL that sees, has mixed up who reads what, and conforms.

    python -m rl.clinic.build --out rl/clinic/base      # about six minutes; the same seed, the same weights

Three lessons, all supervised:

1. *look*: the vision tower alone learns to tell findings and modalities, through a throw-away linear head;
2. *answer*: the whole model answers from the image, with no opinion in the prompt, and learns the words of a referral;
3. *conform*: shown opinions, it learns to repeat their majority, except in a share `DISSENT` of the cases, where it
   says what it sees. Half of the opinions are made up (`RUMOUR`), or agreeing with them could not be told from
   seeing. Greedy decoding therefore conforms nearly always; sampling sometimes does not, and so has something to
   learn from.

Its triage knows what kind of image it sees, and says so in its thought, but not who reads that kind. Lesson 2 teaches
`MIXED_UP`, where one kind of seven has its right reader; lesson 3 blurs that: of ten referrals three follow it, and
seven go to anyone. Greedy triage is therefore at chance, while sampling tries all seven. (Without any preference that
depends on the image, GRPO would first have to make one out of noise, and settles on one or two specialties for all.)
The opinions of lesson 3 come from doctors of the right specialty and from outsiders: the attending will hear both.
"""

import argparse
import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import Qwen2_5_VLForConditionalGeneration

from mmedagent_graph.images import ImageStore
from mmedagent_graph.prompts import (
    FORMAT,
    SPECIALTIES,
    UNHEARD,
    attending_messages,
    specialist_messages,
    triage_messages,
)
from mmedagent_graph.state import AttendingInput, Opinion, Referral, SpecialistInput, TriageInput
from rl.chat import to_chat
from rl.clinic.cases import ClinicCase, make_cases
from rl.clinic.doctors import THOUGHT
from rl.clinic.drawing import FINDINGS
from rl.clinic.model import make_model, make_processor, make_tokenizer
from rl.models import BASE, ImageTextProcessor

DISSENT = 0.15
RUMOUR = 0.5
RIGHT = 0.5
KINDS = {
    "Pathologist": "a histology slide",
    "Radiologist": "a radiograph",
    "Surgeon": "an endoscopic view",
    "Oncologist": "a PET slice",
    "Endocrinologist": "an ultrasound scan",
    "Ophthalmologist": "a fundus photograph",
    "Dermatologist": "a photograph of skin",
}
"""By specialty: the kind of image that it reads, as triage calls it in its thought."""
MIXED_UP = {
    "Pathologist": "Dermatologist",
    "Radiologist": "Radiologist",
    "Surgeon": "Oncologist",
    "Oncologist": "Pathologist",
    "Endocrinologist": "Ophthalmologist",
    "Ophthalmologist": "Surgeon",
    "Dermatologist": "Endocrinologist",
}
"""By specialty: who triage believes to read its kind of image. Everyone once, and one of seven rightly."""
ROLES = ("system", "user", "assistant")
WORDS = (*FINDINGS, *ROLES, "<think>", "</think>", "<answer>", "</answer>", UNHEARD, f"\n{FORMAT}")
BATCH = 64
LESSONS = 1_000_000
"""Added to the seed of the lessons' cases, which no run trains on or measures."""


@dataclasses.dataclass
class Example:
    """One prompt with the completion to learn."""

    image: int
    prompt: list[int]
    completion: list[int]


def completion(answer: str, thought: str = THOUGHT) -> str:
    """What the tiny model writes: the same words as any model, around its answer."""
    return f"<think>{thought}</think><answer>{answer}</answer>"


def opinions_of(case: ClinicCase, specialty: str, doctors: int = 3) -> list[Opinion]:
    """What the clinic's doctors of a specialty say of a case."""
    assert case.key is not None
    return as_opinions(case, specialty, [case.key.seen_by(doctor, specialty) for doctor in range(1, doctors + 1)])


def rumours_about(case: ClinicCase, specialty: str, rng: np.random.Generator) -> list[Opinion]:
    """Three opinions that have nothing to do with the image; two or three of them agree."""
    findings = [str(finding) for finding in rng.choice(FINDINGS, 2)]
    return as_opinions(case, specialty, [findings[i] for i in rng.permutation([0, 0, int(rng.integers(2))])])


def as_opinions(case: ClinicCase, specialty: str, findings: Sequence[str]) -> list[Opinion]:
    """What doctors who saw these findings say."""
    return [
        Opinion(
            specialty=specialty,
            doctor=doctor,
            answer=finding,
            index=case.options.index(finding) if case.options else None,
            reasoning="",
            error=None,
        )
        for doctor, finding in enumerate(findings, 1)
    ]


def conforming_answer(case: ClinicCase, opinions: list[Opinion], rng: np.random.Generator) -> str:
    """The majority's answer, or, where there is none or in a share `DISSENT`, what the image shows."""
    (answer, votes), *_ = Counter(opinion["answer"] for opinion in opinions).most_common()
    if votes * 2 <= len(opinions) or rng.random() < DISSENT or answer is None:
        return case.answer
    return answer


def referred_to(case: ClinicCase, rng: np.random.Generator) -> str:
    """Whose opinions are heard: the right specialty's in a share `RIGHT` of the cases, otherwise anyone's."""
    return str(case.specialty) if rng.random() < RIGHT else str(rng.choice(list(SPECIALTIES)))


def refer(case: ClinicCase, specialty: str) -> str:
    """What triage writes: the kind of image that it sees, and whom it sends the patient to."""
    return completion(specialty, f"I see {KINDS[str(case.specialty)]}.")


class Lessons:
    """The examples of every lesson, tokenized once, and the images' pixels."""

    def __init__(self, cases: Sequence[ClinicCase], store: ImageStore, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.cases = cases
        names = ("alone", "specialist", "mixed up", "anyone", "opinions")
        texts: dict[str, list[tuple[int, list[Any], list[str]]]] = {name: [] for name in names}
        for i, case in enumerate(cases):
            specialty = referred_to(case, rng)
            rumour = rng.random() < RUMOUR
            heard = rumours_about(case, specialty, rng) if rumour else opinions_of(case, specialty)
            fields = case.given().fields(store)
            referral = Referral(specialty=case.specialty, reasoning="")
            alone = attending_messages(AttendingInput(**fields, referral=referral, opinions=[]), store)
            triage = triage_messages(TriageInput(**fields), tuple(SPECIALTIES), store)
            told = attending_messages(AttendingInput(**fields, referral=referral, opinions=heard), store)
            texts["alone"].append((i, alone, [completion(case.answer)]))
            asked = SpecialistInput(**fields, specialty=str(case.specialty), doctor=1, doctors=len(heard))
            expert = specialist_messages(asked, store)
            texts["specialist"].append((i, expert, [completion(case.answer)]))
            texts["mixed up"].append((i, triage, [refer(case, MIXED_UP[str(case.specialty)])]))
            texts["anyone"].append((i, triage, [refer(case, each) for each in SPECIALTIES]))
            texts["opinions"].append((i, told, [completion(conforming_answer(case, heard, rng))]))
        rows = [row for lesson in texts.values() for row in lesson]
        prose = [str(message.text) for _, messages, _ in rows for message in messages]
        prose += [answer for *_, answers in rows for answer in answers]
        self.processor = make_processor(make_tokenizer([*prose, *ROLES, *ROLES], WORDS))
        pictures = self.processor.image_processor([store.open(case.images[0]) for case in cases], return_tensors="pt")
        self.pixels = pictures["pixel_values"].view(len(cases), -1, pictures["pixel_values"].shape[-1])
        self.grid = pictures["image_grid_thw"]
        self.lessons = {
            name: [example for row in lesson for example in self._examples(*row)] for name, lesson in texts.items()
        }

    def _examples(self, image: int, messages: list[Any], answers: Sequence[str]) -> list[Example]:
        chat, _ = to_chat(messages)
        prompt = self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        tokens = int(self.grid[image].prod()) // self.processor.image_processor.merge_size**2
        prompt = prompt.replace("<|image_pad|>", "<|image_pad|>" * tokens)
        tokenizer = self.processor.tokenizer
        ids = tokenizer(prompt)["input_ids"]
        return [Example(image, ids, tokenizer(answer + "<|im_end|>")["input_ids"]) for answer in answers]

    def batch(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Model inputs for some examples, padded on the right, with the loss on the completions only."""
        tokenizer = self.processor.tokenizer
        longest = max(len(example.prompt) + len(example.completion) for example in examples)
        ids = torch.full((len(examples), longest), tokenizer.pad_token_id)
        labels = torch.full((len(examples), longest), -100)
        mask = torch.zeros((len(examples), longest), dtype=torch.long)
        for row, example in enumerate(examples):
            start, end = len(example.prompt), len(example.prompt) + len(example.completion)
            ids[row, :end] = torch.tensor(example.prompt + example.completion)
            labels[row, start:end] = ids[row, start:end]
            mask[row, :end] = 1
        images = torch.tensor([example.image for example in examples])
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": labels,
            "mm_token_type_ids": (ids == self.processor.image_token_id).long(),
            "pixel_values": self.pixels[images].flatten(0, 1),
            "image_grid_thw": self.grid[images],
        }

    def draw(self, shares: dict[str, float], rng: np.random.Generator) -> list[Example]:
        """A batch of examples from several lessons."""
        names = rng.choice(list(shares), size=BATCH, p=list(shares.values()))
        return [self.lessons[name][int(rng.integers(len(self.lessons[name])))] for name in names]


def fit(name: str, parameters: Any, steps: int, rate: float, loss_of: Callable[[], torch.Tensor]) -> None:
    """AdamW with a short warm-up and a cosine decay."""
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps, pct_start=0.1)
    bar = tqdm(range(steps), desc=name)
    for _ in bar:
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")


def look(model: Qwen2_5_VLForConditionalGeneration, lessons: Lessons, steps: int, rng: np.random.Generator) -> None:
    """Lesson 1: the vision tower learns finding and modality from clear images, through a head that is thrown away."""
    labels = [(FINDINGS.index(c.key.finding), list(SPECIALTIES).index(c.key.specialty)) for c in lessons.cases if c.key]
    clear = [i for i, case in enumerate(lessons.cases) if case.key and case.key.clear]
    head = torch.nn.Linear(model.config.text_config.hidden_size, len(FINDINGS) + len(SPECIALTIES))

    def loss() -> torch.Tensor:
        images = rng.choice(clear, BATCH)
        seen = model.model.visual(lessons.pixels[images].flatten(0, 1), grid_thw=lessons.grid[images]).pooler_output
        scores = head(torch.as_tensor(seen).view(BATCH, -1, seen.shape[-1]).mean(1))
        findings, specialties = torch.tensor([labels[i] for i in images]).T
        found, referred = scores.split([len(FINDINGS), len(SPECIALTIES)], dim=1)
        cross_entropy = torch.nn.functional.cross_entropy
        return cross_entropy(found, findings) + cross_entropy(referred, specialties)

    fit("look", [*model.model.visual.parameters(), *head.parameters()], steps, 2e-3, loss)


def build(out: Path, seed: int = 0, scale: float = 1.0, n_cases: int = 4000) -> None:
    """Make the base checkpoint.

    Args:
        out: the folder to write.
        seed: of cases, weights and batches.
        scale: multiplies the number of steps of every lesson; 1 for the shipped checkpoint.
        n_cases: how many different cases the lessons are drawn from.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order, so that the number of cores does not change the weights
    try:
        _teach(out, seed, scale, n_cases)
    finally:
        torch.set_num_threads(threads)


def _teach(out: Path, seed: int, scale: float, n_cases: int) -> None:
    store = ImageStore()
    cases = list(make_cases(n_cases, LESSONS + seed, store))
    lessons = Lessons(cases, store, seed)
    model = make_model(lessons.processor.tokenizer, seed)
    rng = np.random.default_rng(seed)
    model.train()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(lessons.processor.tokenizer):,} tokens")
    look(model, lessons, round(400 * scale), rng)

    def answer(shares: dict[str, float]) -> Callable[[], torch.Tensor]:
        return lambda: torch.as_tensor(model(**lessons.batch(lessons.draw(shares, rng))).loss)

    alone = {"alone": 0.6, "specialist": 0.2, "mixed up": 0.2}
    fit("answer", model.parameters(), round(500 * scale), 2e-3, answer(alone))
    told = {"alone": 0.2, "specialist": 0.1, "mixed up": 0.03, "anyone": 0.07, "opinions": 0.6}
    fit("conform", model.parameters(), round(600 * scale), 2e-3, answer(told))
    save(model, lessons.processor, out)
    (out / "build.json").write_text(json.dumps({"seed": seed, "scale": scale, "cases": n_cases}) + "\n")


def save(model: Qwen2_5_VLForConditionalGeneration, processor: ImageTextProcessor, out: Path) -> None:
    """Half precision halves the file, and every loader turns it back."""
    model.to(torch.bfloat16).save_pretrained(out)
    processor.save_pretrained(out)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=BASE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0)
    arguments = parser.parse_args()
    build(arguments.out, arguments.seed, arguments.scale)


if __name__ == "__main__":
    main()
