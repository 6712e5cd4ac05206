"""Supervised fine-tuning from its command line: the very prompts of GRPO, the answers alone in the loss, resumable."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from trl import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from rl.chat import tokenize
from rl.models import folder_of, load_processor
from rl.settings import read_settings
from rl.store import read_traces
from rl.train_sft import COMMAND, Imitating, gold, gold_answer, main
from rl.trainer import ImitationTrainer
from tests.integration.grpo import assert_same_weights, dying, weights_of

SMALL = ["--per_device_train_batch_size", "8", "--logging_steps", "1", "--save_steps", "2"]
CLINIC = ["--train_size", "40", "--eval_size", "24", *SMALL]


def logged(run: Path, name: str) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows]


def test_gold_answers_from_end_to_end(tmp_path: Path):
    flags = ["--num_train_epochs", "4", "--learning_rate", "0.001"]
    summary = main(["--runs", str(tmp_path), "--name", "gold", *flags, *CLINIC])
    run = tmp_path / "gold"
    assert json.loads((run / "summary.json").read_text()) == summary
    assert summary["recipe"] == "clinic_sft"
    assert set(summary["seconds"]) >= {"before", "examples", "sft", "after"}
    for when in ("before", "after"):
        assert summary[when]["overall"]["n"] == 24
    examples = list(read_traces(run / "stages" / "sft" / "examples.parquet"))
    assert len(examples) == 40
    assert all(example.text == gold_answer(example.answer) for example in examples)
    losses = logged(run, "loss")
    assert len(losses) == 4 * 5
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert "sft" not in [path.name for path in (run / "stages" / "sft").iterdir()]
    assert not (run / "stages" / "sft" / "checkpoints").exists()
    assert (run / "model").resolve() == (run / "stages" / "sft" / "model").resolve()


def test_both_roles_learn_their_own_keys(tmp_path: Path):
    flags = ["--nodes", "triage", "attending", "--max_steps", "2"]
    main(["--runs", str(tmp_path), "--name", "both", *flags, *CLINIC])
    examples = list(read_traces(tmp_path / "both" / "stages" / "sft" / "examples.parquet"))
    assert [example.node for example in examples] == ["triage"] * 40 + ["attending"] * 40
    for example in examples:
        assert example.text == gold_answer(example.specialty if example.node == "triage" else example.answer)


def test_the_policys_own_right_answers(tmp_path: Path):
    flags = ["--imitate", "own", "--samples", "4", "--max_steps", "2"]
    main(["--runs", str(tmp_path), "--name", "own", *flags, *CLINIC])
    examples = list(read_traces(tmp_path / "own" / "stages" / "sft" / "examples.parquet"))
    assert examples
    assert len({(example.case, example.text) for example in examples}) == len(examples)
    for example in examples:
        assert example.right
        assert example.rewards == {"format": 1.0, "accuracy": 1.0}
        assert example.text != gold_answer(example.answer)  # it has thoughts of its own


def test_a_policy_that_is_never_right_has_nothing_to_imitate(tmp_path: Path, monkeypatch):
    """With room for two tokens no answer can be read."""
    plain = Imitating._own

    def cramped(self, upstream):
        self.room = 2
        return plain(self, upstream)

    monkeypatch.setattr(Imitating, "_own", cramped)
    own = ["--imitate", "own", "--samples", "1", "--train_size", "2", "--eval_size", "2"]
    with pytest.raises(ValueError, match=r"imitate: no answer of 'clinic:base' was right in 1 samples"):
        main(["--runs", str(tmp_path), *own, *SMALL])


BLOOD = ["O", "A", "B", "AB"]
TAGS = ["<think>", "none"]
"""What could not be told from the format's own."""


@pytest.fixture
def cases_of(tmp_path: Path):
    """Flags for a file of cases with these options and keys; each has an image of its own."""

    def written(*keyed: tuple[list[str], str]) -> list[str]:
        rows = []
        for i, (options, key) in enumerate(keyed):
            Image.new("RGB", (56, 56), (i, 0, 0)).save(tmp_path / f"{i}.png")
            rows.append({"id": str(i), "question": "Which?", "options": options, "image": f"{i}.png", "answer": key})
        (tmp_path / "cases.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return ["--cases", str(tmp_path / "cases.jsonl"), "--holdout", "0.25", "--max_steps", "1"]

    return written


def test_every_gold_answer_can_be_read_and_what_cannot_is_counted(tmp_path: Path, cases_of, capsys):
    keyed = [(BLOOD, key) for key in BLOOD] * 2 + [(TAGS, "<think>")] * 4
    main(["--runs", str(tmp_path), "--name", "blood", *cases_of(*keyed), *SMALL])
    examples = list(read_traces(tmp_path / "blood" / "stages" / "sft" / "examples.parquet"))
    assert examples
    assert all(example.right and example.options == BLOOD for example in examples)
    assert {example.text for example in examples} <= {gold_answer(key, BLOOD) for key in BLOOD}
    assert f"note: {9 - len(examples)} of 9 prompts are left out: no key that can be read" in capsys.readouterr().out


def test_keys_none_of_which_can_be_read_teach_nothing(tmp_path: Path, cases_of):
    with pytest.raises(ValueError, match="imitate: no key can be read where it stands as an answer"):
        main(["--runs", str(tmp_path), *cases_of(*[(TAGS, "<think>")] * 4), *SMALL])


@pytest.fixture
def trainer(upstream, arrivals, images, tmp_path, request):
    """On gold answers of both nodes."""
    flags = [*SMALL, *getattr(request, "param", [])]
    settings = read_settings(COMMAND, [*flags, "--output_dir", str(tmp_path)]).trainer
    examples = [*gold(arrivals[:4]), *gold(upstream[:4])]
    imitating = object.__new__(Imitating)
    imitating.images = images
    assert isinstance(settings, SFTConfig)
    processor = load_processor("clinic:base")
    dataset = Imitating.dataset(imitating, examples)
    model = folder_of("clinic:base")
    trainer = ImitationTrainer(model=model, args=settings, train_dataset=dataset, processing_class=processor)
    return trainer, examples


def test_the_prompts_are_those_of_the_policy_and_the_loss_is_on_the_answer(trainer, rollout, policy):
    """Token for token, for both nodes; nothing after the answer's end is learned, where no model generates on."""
    trainer, examples = trainer
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(examples))])
    end = policy.processor.tokenizer.eos_token_id
    answers = policy.answer([rollout.prompt(example) for example in examples])
    for i, (example, answer) in enumerate(zip(examples, answers, strict=True)):
        ids, labels = batch["input_ids"][i], batch["labels"][i]
        learned = labels != -100
        first = int(learned.nonzero()[0])
        prompt = ids[:first][batch["attention_mask"][i][:first].bool()].tolist()
        assert prompt == answer.response_metadata["prompt_token_ids"]
        completion = ids[learned].tolist()
        assert completion == labels[learned].tolist()
        assert completion[-1] == end
        assert completion.count(end) == 1
        assert policy.processor.tokenizer.decode(completion[:-1]) == example.text
        assert learned.nonzero().flatten().tolist() == list(range(first, first + len(completion)))  # in one piece


@pytest.mark.parametrize("trainer", [["--max_length", "20"]], indirect=True)
def test_what_is_longer_than_max_length_is_cut(trainer):
    trainer, examples = trainer
    rows = [trainer.train_dataset[i] for i in range(len(examples))]
    whole = DataCollatorForVisionLanguageModeling(trainer.processing_class, completion_only_loss=True)(rows)
    assert whole["input_ids"].shape[1] > 20
    assert trainer.data_collator.max_length == 20
    with pytest.raises(ValueError, match=r"max_length: 20 cuts off a whole answer"):
        trainer.data_collator([trainer.train_dataset[i] for i in range(len(examples))])


def test_the_images_are_those_of_the_cases(trainer, rollout, policy):
    trainer, examples = trainer
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(examples))])
    expected = tokenize(policy.processor, [rollout.prompt(example) for example in examples])["pixel_values"]
    torch.testing.assert_close(torch.as_tensor(batch["pixel_values"]), torch.as_tensor(expected))


def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path):
    """Beyond a checkpoint, with a further step in the log that is made again."""
    few = ["--train_size", "24", "--eval_size", "4", "--num_train_epochs", "3", "--save_steps", "4"]
    flags = ["--runs", str(tmp_path), *SMALL, *few]
    main([*flags, "--name", "whole"])
    with dying("training_step", lambda trainer: trainer.state.global_step == 6, ImitationTrainer):
        main([*flags, "--name", "killed"])
    stage = tmp_path / "killed" / "stages" / "sft"
    assert [path.name for path in (stage / "checkpoints").glob("checkpoint-*")] == ["checkpoint-4"]
    assert len((stage / "metrics.jsonl").read_text().splitlines()) == 6
    torch.manual_seed(99)  # another process begins with other random numbers
    main(["--runs", str(tmp_path), "--resume", "--name", "killed"])
    assert_same_weights(tmp_path / "whole" / "model", tmp_path / "killed" / "model")
    assert logged(tmp_path / "killed", "step") == list(range(1, 10))
    assert logged(tmp_path / "killed", "loss") == logged(tmp_path / "whole", "loss")


def test_a_frozen_vision_tower_stays_as_it_is(tmp_path: Path):
    flags = ["--freeze_vision", "true", "--max_steps", "2", "--learning_rate", "0.01"]
    main(["--runs", str(tmp_path), "--name", "frozen", *flags, *CLINIC])
    base, trained = weights_of(folder_of("clinic:base")), weights_of(tmp_path / "frozen" / "model")
    changed = {name for name, weights in trained.items() if not torch.equal(weights, base[name].float())}
    assert changed == {name for name in trained if "visual" not in name.split(".")}
