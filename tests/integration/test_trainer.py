"""Real GRPO steps on the clinic's base: each test would catch one way for training to fail silently."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from trl import GRPOTrainer

from rl.chat import tokenize
from rl.curriculum import Stage, draw_cases
from rl.models import folder_of, load_processor
from rl.recipe import stage_settings
from rl.stage import dataset_of, reward_of, train_stage
from rl.traces import read_completions
from rl.trainer import StagedEntropyTrainer

FLAGS = ["--per_device_train_batch_size=8", "--num_generations=4", "--logging_steps=1", "--save_steps=2"]
GAMMAS = [0.01, 0.01, 0.01]
SHARES = {"easy": 1.0, "medium": 1.0, "hard": 1.0}


def stage(steps: int = 1, beta: float = 0.0) -> Stage:
    return Stage("1-easy", steps, beta, SHARES)


@pytest.fixture
def make_trainer(rollout, upstream, tmp_path):
    def make(gamma: float = 0.0, cls: type = StagedEntropyTrainer, flags: tuple[str, ...] = (), steps: int = 1):
        settings = stage_settings([*FLAGS, *flags], stage(steps), tmp_path / "stage")
        traces = draw_cases(upstream, stage(steps), steps * 2, seed=0)
        gammas = dict.fromkeys(SHARES, gamma)
        return cls(
            model=folder_of("clinic:base"),
            reward_funcs=reward_of(traces, rollout, tmp_path / "completions.jsonl"),
            args=settings,
            train_dataset=dataset_of(traces, rollout, gammas),
            processing_class=load_processor("clinic:base"),
        )

    return make


def batch_of(trainer) -> dict:
    """One generated and graded batch."""
    torch.manual_seed(0)
    rows = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer._generate_and_score_completions(rows)


def gradient_of(trainer, batch) -> tuple[float, torch.Tensor]:
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    gradients = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(gradients)


def test_the_entropy_bonus_has_a_gradient_and_the_documented_size(make_trainer):
    trainer = make_trainer()
    batch = batch_of(trainer)
    batch["advantages"] = torch.zeros_like(batch["advantages"])  # the bonus alone
    silent, none = gradient_of(trainer, batch)
    assert silent == pytest.approx(0, abs=1e-7)
    assert none.abs().max() == 0
    batch["gamma"] = torch.full_like(batch["gamma"], 0.5)
    loss, gradient = gradient_of(trainer, batch)
    entropy = trainer._metrics["train"]["entropy"][-1]
    assert entropy > 0
    assert loss == pytest.approx(-0.5 * entropy, rel=1e-4)
    assert gradient.abs().max() > 1e-4


def test_equal_gammas_are_trls_entropy_coef(make_trainer):
    ours = make_trainer(gamma=0.02)
    batch = batch_of(ours)
    loss, gradient = gradient_of(ours, batch)
    plain = make_trainer(cls=GRPOTrainer, flags=("--entropy_coef=0.02",))
    plain.model.train()
    plain.current_gradient_accumulation_steps = 1
    batch.pop("gamma")
    plain_loss, plain_gradient = gradient_of(plain, batch)
    assert loss == pytest.approx(plain_loss, abs=1e-6)
    torch.testing.assert_close(gradient, plain_gradient, atol=1e-6, rtol=1e-4)


def test_gamma_weighs_each_sample(make_trainer):
    """Only the samples with a gamma get a bonus, after shuffling and splitting as before."""
    trainer = make_trainer()
    batch = batch_of(trainer)
    batch["advantages"] = torch.zeros_like(batch["advantages"])
    half = torch.zeros_like(batch["gamma"])
    half[:4] = 1.0
    gammas = (half, 1 - half, torch.ones_like(half))
    parts = [gradient_of(trainer, {**batch, "gamma": gamma})[1] for gamma in gammas]
    torch.testing.assert_close(parts[0] + parts[1], parts[2], atol=1e-6, rtol=1e-3)
    assert not torch.allclose(parts[0], parts[1], atol=1e-4)


def test_an_own_entropy_coefficient_is_refused(make_trainer):
    with pytest.raises(ValueError, match=r"entropy_coef: 0\.1 .* set gammas alone"):
        make_trainer(flags=("--entropy_coef=0.1",))


def test_gamma_follows_its_sample_into_the_step(make_trainer, monkeypatch):
    """After TRL's shuffle, a sample's gamma is still its own: here gamma is told by the prompt."""
    trainer = make_trainer(steps=1)
    dataset = trainer.train_dataset
    gammas = [float(i) for i in range(len(dataset))]
    trainer.train_dataset = dataset.remove_columns("gamma").add_column("gamma", gammas)
    lengths = {}
    for i, row in enumerate(trainer.train_dataset):
        ids = trainer._tokenize_prompts([_with_images(row)])[0][0]
        lengths[tuple(ids)] = float(i)
    seen = []

    def compute(model, inputs):
        for ids, mask, gamma in zip(inputs["prompt_ids"], inputs["prompt_mask"], inputs["gamma"], strict=True):
            seen.append((lengths[tuple(ids[mask.bool()].tolist())], gamma.item()))
        return StagedEntropyTrainer.__mro__[1]._compute_loss(trainer, model, inputs)

    monkeypatch.setattr(trainer, "_compute_loss", compute)
    trainer.train()
    assert len(seen) == 8
    assert {pair[0] for pair in seen} == {0.0, 1.0}
    assert all(expected == got for expected, got in seen)


def test_changing_the_image_changes_the_trained_log_probabilities(make_trainer):
    trainer = make_trainer()
    batch = batch_of(trainer)
    assert batch["pixel_values"].abs().sum() > 0
    kept = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")

    def logps(pixels):
        inputs = {name: batch[name] for name in kept} | {"pixel_values": pixels}
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        with torch.no_grad():
            return trainer._get_per_token_logps_and_entropies(
                trainer.model, ids, mask, batch["completion_ids"].shape[1], **inputs
            )[0]

    same = logps(batch["pixel_values"])
    other = logps(batch["pixel_values"].flip(0))
    assert (same - other).abs().max() > 0.01


def test_the_pixels_that_are_trained_on_are_those_of_the_case(make_trainer):
    trainer = make_trainer()
    row = trainer.train_dataset[0]
    processor = trainer.processing_class
    expected = processor.image_processor(row["images"], return_tensors="pt")["pixel_values"]
    got = trainer._tokenize_prompts([_with_images(row)])[2]["pixel_values"]
    torch.testing.assert_close(torch.as_tensor(got), torch.as_tensor(expected))


def _with_images(row: dict) -> list[dict]:
    from trl.data_utils import prepare_multimodal_messages

    return prepare_multimodal_messages(row["prompt"], images=row["images"])


def test_prompt_ids_of_training_equal_those_of_inference(make_trainer, rollout, upstream, policy):
    """Token for token, for the same case, through TRL's own tokenization and through the chat model's."""
    trainer = make_trainer()
    batch = batch_of(trainer)
    trained = {
        tuple(ids[mask.bool()].tolist()) for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)
    }
    drawn = draw_cases(upstream, stage(), 2, seed=0)
    answers = policy.answer([rollout.prompt(trace) for trace in drawn])
    served = {tuple(answer.response_metadata["prompt_token_ids"]) for answer in answers}
    assert trained == served
    image = policy.processor.image_token_id
    assert all(ids.count(image) == 4 for ids in served)


def test_every_completion_is_recorded_as_the_model_wrote_it(make_trainer, tmp_path):
    trainer = make_trainer()
    batch = batch_of(trainer)
    completions = list(read_completions(tmp_path / "completions.jsonl"))
    assert len(completions) == 8
    ids = [
        row[mask.bool()].tolist() for row, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True)
    ]
    texts = trainer.processing_class.tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert sorted(texts) == sorted(completion.text for completion in completions)
    assert {completion.step for completion in completions} == {1}


def test_a_truncated_completion_loses_its_own_reward_only(make_trainer, tmp_path):
    """With room for three tokens nothing is readable; with room for all, rewards come back."""
    batch_of(make_trainer(flags=("--max_completion_length=3",)))
    cut = list(read_completions(tmp_path / "completions.jsonl"))
    assert all(sum(completion.rewards.values()) == 0 for completion in cut)
    (tmp_path / "completions.jsonl").unlink()
    batch_of(make_trainer(flags=("--max_completion_length=16",)))
    whole = list(read_completions(tmp_path / "completions.jsonl"))
    assert all(completion.rewards["format"] == 0.5 for completion in whole)
    assert any(completion.rewards["accuracy"] == 1 for completion in whole)


def test_a_killed_stage_resumes_to_the_same_weights(rollout, upstream, tmp_path):
    traces = draw_cases(upstream, stage(4), 8, seed=0)

    def run(out: Path, steps: int | None = None) -> None:
        settings = stage_settings([*FLAGS, "--beta=0.01"], stage(4, beta=0.01), out)
        settings.output_dir = str(out / "checkpoints")
        hook = pytest.MonkeyPatch()
        if steps:  # die in the middle of a step, as a killed process does, after the checkpoint
            plain = StagedEntropyTrainer.training_step

            def dying(self, *args, **kwargs):
                if self.state.global_step == steps:
                    raise KeyboardInterrupt
                return plain(self, *args, **kwargs)

            hook.setattr(StagedEntropyTrainer, "training_step", dying)
        try:
            train_stage(stage(4, 0.01), "clinic:base", out, traces, rollout, settings, GAMMAS)
        finally:
            hook.undo()

    run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", steps=3)
    run(tmp_path / "killed")
    from safetensors.torch import load_file

    whole, killed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed"))
    base = load_file(Path(folder_of("clinic:base")) / "model.safetensors")
    for name, weights in whole.items():
        torch.testing.assert_close(weights, killed[name], rtol=0, atol=0)
    assert any(not torch.equal(weights, base[name].float()) for name, weights in whole.items())
    records = [list(read_completions(tmp_path / name / "completions.jsonl")) for name in ("whole", "killed")]
    assert [c.step for c in records[0]] == [c.step for c in records[1]]
    assert sorted(c.text for c in records[0]) == sorted(c.text for c in records[1])


def test_images_travel_to_the_model_in_any_colour(policy, images):
    """A grey and an RGBA picture become what the processor takes."""
    from mmedagent_graph.prompts import attending_messages

    for mode in ("L", "RGBA", "P"):
        ref = images.put(Image.new(mode, (40, 30)))
        state = {"question": "?", "options": [], "images": [ref], "context": None, "opinions": []}
        assert "pixel_values" in tokenize(policy.processor, [attending_messages(state, images)])
