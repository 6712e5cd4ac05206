"""Real GRPO steps on the clinic's base: each test would catch one way for training to fail silently."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from PIL import Image
from trl import GRPOTrainer
from trl.data_utils import prepare_multimodal_messages

from mmedagent_graph.nodes import Triage
from mmedagent_graph.prompts import SPECIALTIES, attending_messages
from rl.chat import tokenize
from rl.curriculum import Stage
from rl.models import folder_of, freeze_vision, load_processor
from rl.recipe import stage_settings
from rl.store import read_traces
from rl.train_attending import COMMAND
from rl.trainer import ConsultationTrainer, flat
from rl.watch import UNSEEN
from tests.integration.grpo import (
    BOTH,
    FLAGS,
    Runner,
    assert_same_weights,
    dying,
    make_environment,
    stage,
    weights_of,
)


@pytest.fixture(scope="module")
def pauses(upstream, arrivals):
    """Where the nodes pause, for either node that learns."""
    return {"attending": upstream, "triage": arrivals}


@pytest.fixture(scope="module")
def run(pauses, images):
    return Runner(pauses, images)


@pytest.fixture
def make_trainer(pauses, images, tmp_path):
    def make(
        of: Stage | None = None,
        cls: type = ConsultationTrainer,
        flags: tuple[str, ...] = (),
        upstream: dict | None = None,
        **more,
    ):
        of = of or stage()
        settings = stage_settings(COMMAND, [*FLAGS, *flags], of, tmp_path / "stage")
        environment = make_environment(of, upstream or pauses, images, tmp_path / "stage", settings)
        if cls is GRPOTrainer:
            more |= {"reward_funcs": environment.reward, "train_dataset": environment.dataset()}
        else:
            more |= {"environment": environment}
        model, processor = folder_of("clinic:base"), load_processor("clinic:base")
        return cls(model=model, args=settings, processing_class=processor, **more)

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


def logged(out: Path, name: str) -> list[float]:
    """A figure of a stage, step for step."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if row.get(name) is not None]


# The entropy bonus


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
    ours = make_trainer(stage(gamma=0.02))
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


def test_gamma_follows_its_sample_into_the_step(make_trainer, pauses, monkeypatch):
    """After TRL's shuffle, a sample's gamma is still its own: here it is told by the prompt."""
    of = dataclasses.replace(stage(), gammas={"easy": 1.0, "medium": 2.0, "hard": 3.0})
    trainer = make_trainer(of, flags=("--per_device_train_batch_size=12",))
    environment = trainer.environment
    gamma_of = {}
    for row, trace in zip(trainer.train_dataset, environment.prompts, strict=True):
        gamma_of[tuple(trainer._tokenize_prompts([with_images(row)])[0][0])] = of.gamma(trace, 0.0)
    seen = []

    def compute(model, inputs):
        for ids, mask, gamma in zip(inputs["prompt_ids"], inputs["prompt_mask"], inputs["gamma"], strict=True):
            seen.append((gamma_of[tuple(ids[mask.bool()].tolist())], gamma.item()))
        return ConsultationTrainer._compute_loss(trainer, model, inputs)

    monkeypatch.setattr(trainer, "_compute_loss", compute)
    trainer.train()
    assert sorted({expected for expected, _ in seen}) == [1.0, 2.0, 3.0]
    assert all(expected == got for expected, got in seen)
    assert len(seen) == 12
    assert [expected for expected, _ in seen] != sorted(expected for expected, _ in seen)  # it has been shuffled


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [("constant", [1, 1, 1, 1]), ("rise", [0, 0.25, 0.5, 0.75]), ("fall", [1, 0.75, 0.5, 0.25])],
)
def test_gamma_goes_as_its_schedule_says(make_trainer, monkeypatch, schedule, factors):
    trainer = make_trainer(stage(4, gamma=0.4, schedule=schedule))
    seen = []

    def compute(model, inputs):
        seen.append(inputs["gamma"].tolist())
        return ConsultationTrainer._compute_loss(trainer, model, inputs)

    monkeypatch.setattr(trainer, "_compute_loss", compute)
    trainer.train()
    assert seen == [[pytest.approx(0.4 * factor)] * 8 for factor in factors]


def test_adaptive_entropy_is_left_to_trl(run, tmp_path):
    """Without gammas the loss is TRL's own, controller included."""
    flags = [
        "--use_adaptive_entropy",
        "true",
        "--entropy_coef",
        "0.01",
        "--entropy_target",
        "5",
        "--gammas",
        "0",
        "0",
        "0",
    ]
    run(tmp_path, stage(3), flags)
    coefficients = logged(tmp_path, "entropy_coef")
    delta = coefficients[1] - coefficients[0]
    assert delta > 0  # the target is far: it rises, step for step
    assert coefficients == pytest.approx([0.01 + delta * (i + 1) for i in range(3)])


# What is trained on


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
    assert (same - other).abs().max() > 1e-3  # were there no features: 0


@pytest.mark.parametrize("blind", [False, True], ids=["a policy that sees", "a blind policy"])
def test_how_much_the_images_matter_is_measured(make_trainer, blind):
    trainer = make_trainer(stage(nodes={"triage": 1.0}))  # an attending that conforms looks at opinions more
    batch = batch_of(trainer)
    if blind:
        for weights in trainer.model.model.visual.merger.parameters():
            weights.data.zero_()
    gradient_of(trainer, batch)
    (effect,) = trainer._metrics["train"]["image_effect"]
    if blind:
        assert effect == pytest.approx(0, abs=1e-6)
    else:
        assert effect > 10 * UNSEEN


def test_dropout_does_not_make_the_images_matter(make_trainer):
    adapter = LoraConfig(target_modules=["q_proj"], lora_dropout=0.5)
    trainer = make_trainer(stage(nodes={"triage": 1.0}), peft_config=adapter)
    for name, weights in trainer.model.named_parameters():
        if "merger" in name:
            weights.data.zero_()
        elif "lora_B" in name:
            weights.data.normal_()
    gradient_of(trainer, batch_of(trainer))
    assert trainer._metrics["train"]["image_effect"] == [pytest.approx(0, abs=1e-6)]
    assert trainer.model.training


def test_cases_with_and_without_images_learn_together(run, pauses, images, tmp_path):
    """TRL marks a prompt without images by None, which the processor refuses."""
    traces = [
        dataclasses.replace(trace, images=trace.images if i % 2 else []) for i, trace in enumerate(pauses["attending"])
    ]
    runner = Runner({"attending": traces}, images)
    runner(tmp_path, stage(2), ["--per_device_train_batch_size=16", "--logging_steps=1"])
    rollouts = list(read_traces(tmp_path / "rollouts.parquet"))
    assert {bool(rollout.images) for rollout in rollouts} == {True, False}
    assert all(len(rollout.logprobs) == len(rollout.completion_ids) for rollout in rollouts)


def test_whether_the_images_matter_is_looked_at_now_and_then(make_trainer, monkeypatch):
    monkeypatch.setattr("rl.trainer.SWAP_EVERY", 2)
    trainer = make_trainer(stage(4))
    looked = []
    plain = ConsultationTrainer._note_image_effect
    monkeypatch.setattr(
        ConsultationTrainer,
        "_note_image_effect",
        lambda self, *args: (looked.append(self.state.global_step), plain(self, *args)),
    )
    trainer.train()
    assert looked == [0, 2]


def test_the_pixels_that_are_trained_on_are_those_of_the_case(make_trainer):
    trainer = make_trainer()
    row = trainer.train_dataset[0]
    processor = trainer.processing_class
    expected = processor.image_processor(row["images"], return_tensors="pt")["pixel_values"]
    got = trainer._tokenize_prompts([with_images(row)])[2]["pixel_values"]
    torch.testing.assert_close(torch.as_tensor(got), torch.as_tensor(expected))


def with_images(row: dict) -> list[dict]:
    return prepare_multimodal_messages(row["prompt"], images=row["images"])


def test_prompt_ids_of_training_equal_those_of_inference(make_trainer, rollout, policy):
    """Token for token, for the same cases and either node, through TRL's tokenization and through the chat model's."""
    trainer = make_trainer(stage(nodes=BOTH))
    batch = batch_of(trainer)
    trained = {
        tuple(ids[mask.bool()].tolist()) for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)
    }
    assert [trace.node for trace in trainer.environment.prompts] == ["triage", "attending"]
    answers = policy.answer([rollout.prompt(trace) for trace in trainer.environment.prompts])
    served = {tuple(answer.response_metadata["prompt_token_ids"]) for answer in answers}
    assert trained == served
    image = policy.processor.image_token_id
    assert all(ids.count(image) == 4 for ids in served)


def test_the_policy_completes_upstream_prompts_as_it_does_at_inference(make_trainer, rollout, policy):
    """`complete` at hardly any temperature is greedy decoding of the very same prompts."""
    trainer = make_trainer(stage(nodes=BOTH), flags=("--temperature=0.001",))
    traces = trainer.environment.prompts
    messages = [rollout.prompt(trace) for trace in traces] * 7  # more than fit in one batch
    from rl.environment import _asked

    trainer.model.train()
    said = trainer.complete([_asked(message) for message in messages])
    answers = policy.answer(messages)
    assert [text for text, _ in said] == [str(answer.text) for answer in answers]
    assert [ids for _, ids in said] == [answer.response_metadata["token_ids"] for answer in answers]


# What is recorded


def test_every_completion_is_recorded_as_the_model_wrote_it(make_trainer):
    trainer = make_trainer()
    batch = batch_of(trainer)
    gradient_of(trainer, batch)
    trainer.environment.record.flush()
    rollouts = list(read_traces(trainer.environment.record.folder))
    assert len(rollouts) == 8
    ids = [
        row[mask.bool()].tolist() for row, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True)
    ]
    assert [rollout.completion_ids for rollout in rollouts] == ids
    texts = trainer.processing_class.tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert [rollout.text for rollout in rollouts] == texts
    assert {(rollout.step, rollout.policy) for rollout in rollouts} == {(1, "1-easy@0")}


def fresh_logprobs(policy, images, trace) -> torch.Tensor:
    """What the base, in float32, says of a recorded completion after its recorded prompt."""
    pixels = policy.processor.image_processor([images.open(ref) for ref in trace.images], return_tensors="pt")
    ids = torch.tensor([trace.prompt_ids + trace.completion_ids])
    types = (ids == policy.processor.image_token_id).long()
    with torch.no_grad():
        logits = policy.model.float()(input_ids=ids, mm_token_type_ids=types, **pixels).logits[0]
    logprobs = logits[len(trace.prompt_ids) - 1 : -1].log_softmax(-1)
    return logprobs.gather(1, torch.tensor(trace.completion_ids)[:, None])[:, 0]


@pytest.mark.parametrize(
    ("flag", "rows"),
    [("", 8), ("--num_iterations=2", 8), ("--gradient_accumulation_steps=2", 16), ("--steps_per_generation=2", 16)],
)
def test_recorded_tokens_and_log_probabilities_are_those_of_a_fresh_forward_pass(
    run, policy, images, tmp_path, flag, rows
):
    """Of both nodes, and where a generation is learned from later or twice: what counts is the policy that wrote it."""
    run(tmp_path, stage(2, nodes=BOTH, gamma=0.1), ["--learning_rate=0.01", *([flag] if flag else [])])
    rollouts = [rollout for rollout in read_traces(tmp_path / "rollouts.parquet") if rollout.step == 1]
    assert {rollout.node for rollout in rollouts} == set(BOTH)
    assert len(rollouts) == rows
    for rollout in rollouts:
        assert rollout.finish == "stop"
        expected = fresh_logprobs(policy, images, rollout)
        torch.testing.assert_close(torch.tensor(rollout.logprobs), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("flag", ["--num_iterations=2", "--steps_per_generation=2"])
def test_a_stage_that_ends_inside_a_generation_is_whole(run, tmp_path, flag):
    """Every step is taken, on prompts of its own, and what was generated is recorded, learned from or not."""
    run(tmp_path, stage(3), [flag, "--save_strategy=no"])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    rollouts = list(read_traces(tmp_path / "rollouts.parquet"))
    per_generation = 16 if "steps" in flag else 8
    assert [rollout.step for rollout in rollouts] == [1] * per_generation + [3] * per_generation
    assert {rollout.case for rollout in rollouts[:per_generation]}.isdisjoint(
        rollout.case for rollout in rollouts[per_generation:]
    )


def test_what_trl_masks_has_no_log_probabilities(run, tmp_path):
    run(tmp_path, stage(1), ["--max_completion_length=3", "--mask_truncated_completions=true"])
    rollouts = list(read_traces(tmp_path / "rollouts.parquet"))
    assert {(rollout.finish, rollout.logprobs) for rollout in rollouts} == {("length", None)}


def test_a_truncated_completion_loses_its_own_reward_only(make_trainer):
    """With room for three tokens nothing is readable; with room for all, rewards come back."""
    cut = make_trainer(flags=("--max_completion_length=3",))
    batch_of(cut)
    assert all(trace.reward == 0 for trace in cut.environment.batch)
    assert {trace.finish for trace in cut.environment.batch} == {"length"}
    whole = make_trainer(flags=("--max_completion_length=16",))
    batch_of(whole)
    assert all(trace.rewards["format"] == 1 for trace in whole.environment.batch)
    assert any(trace.rewards["accuracy"] == 1 for trace in whole.environment.batch)
    assert {trace.finish for trace in whole.environment.batch} == {"stop"}


def test_what_cannot_be_graded_does_not_move_the_policy(run, pauses, images, tmp_path, caplog):
    """Cases without a key: no reward, no advantage, no bonus, and so not a weight changes; no case is printed."""
    keyless = {"attending": [dataclasses.replace(trace, answer=None) for trace in pauses["attending"]]}
    model = Runner(keyless, images)(tmp_path, stage(2), ["--learning_rate=0.1", "--weight_decay=0"])
    assert logged(tmp_path, "ungraded") == [1.0, 1.0]
    base = weights_of(folder_of("clinic:base"))
    for name, weights in weights_of(model).items():
        assert torch.equal(weights, base[name].to(weights.dtype)), name
    rollouts = list(read_traces(tmp_path / "rollouts.parquet"))
    assert [rollout.reward for rollout in rollouts] == [None] * 16
    assert "following kwargs" not in caplog.text


# Nodes


@pytest.mark.parametrize("shares", [(1.0, 1.0), (3.0, 1.0), (1.0, 3.0), (7.0, 1.0)])
def test_each_node_has_the_same_say_however_many_rows_it_has(make_trainer, monkeypatch, shares):
    nodes = dict(zip(BOTH, shares, strict=True))
    flags = ("--per_device_train_batch_size=32",)  # eight prompts
    plain = GRPOTrainer._generate_and_score_completions

    def equal(self, inputs):
        output = plain(self, inputs)
        signs = torch.ones_like(output["advantages"])
        signs[::2] = -1
        return {**output, "advantages": signs}

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", equal)
    trainer = make_trainer(stage(nodes=nodes), flags=flags)
    weights = batch_of(trainer)["advantages"].abs()
    rows = [trace.node for trace in trainer.environment.batch]
    sums = {node: sum(w for w, row in zip(weights.tolist(), rows, strict=True) if row == node) for node in nodes}
    assert [rows.count(node) for node in nodes] == [32 * share / sum(shares) for share in shares]
    assert sums == pytest.approx({"triage": 16.0, "attending": 16.0})


def test_each_node_has_the_same_say_in_steps_of_many_generations(make_trainer):
    """The weights are those of the stage: a generation of one prompt cannot tell how many the other node has."""
    flags = ("--per_device_train_batch_size=4", "--gradient_accumulation_steps=8", "--steps_per_generation=1")
    trainer = make_trainer(stage(nodes={"triage": 3.0, "attending": 1.0}), flags=flags)
    weight = trainer.environment.stage.weight
    rows = [trace.node for trace in trainer.environment.prompts]
    assert len(rows) == 8
    assert [rows.count(node) * weight(node) for node in BOTH] == pytest.approx([4.0, 4.0])


def test_a_node_alone_has_plain_weights():
    assert [stage(nodes={node: 0.3}).weight(node) for node in BOTH] == [1.0, 1.0]


def test_groups_without_variance_are_counted_for_each_kind(make_trainer):
    trainer = make_trainer(stage(nodes=BOTH), flags=("--per_device_train_batch_size=16",))
    batch_of(trainer)
    traces = trainer.environment.batch
    for kind in ("easy", "medium", "hard", "triage"):
        of_kind = [trace for trace in traces if (trace.node if trace.node == "triage" else trace.tier) == kind]
        groups = [of_kind[i : i + 4] for i in range(0, len(of_kind), 4)]
        lost = [len({trace.reward for trace in group}) == 1 for group in groups]
        noted = trainer._metrics["train"].get(f"no_variance/{kind}")
        assert noted == ([pytest.approx(sum(lost) / len(lost))] if lost else None)
    groups = [{trace.reward for trace in traces[i : i + 4]} for i in range(0, len(traces), 4)]
    share = sum(len(group) == 1 for group in groups) / len(groups)
    assert trainer._metrics["train"]["no_variance"] == [pytest.approx(share)]


@pytest.mark.parametrize(
    ("rewards", "lost"),
    [
        ([0.0, 0.5, 1.0, 0.5], False),  # two of them at the mean
        ([0.3] * 6, True),  # whose mean in floats is not 0.3
        ([1.0, torch.nan, 1.0], True),
        ([1.0, torch.nan, 0.5], False),
        ([torch.nan] * 3, True),
    ],
)
def test_which_groups_teach_nothing(rewards, lost):
    assert flat(torch.tensor([rewards])).tolist() == [lost]


def test_clip_higher_reaches_trl(make_trainer):
    trainer = make_trainer(flags=("--epsilon=0.1", "--epsilon_high=0.3"))
    assert (trainer.epsilon_low, trainer.epsilon_high) == (0.1, 0.3)
    batch = batch_of(trainer)
    batch["advantages"] = torch.ones_like(batch["advantages"])
    with torch.no_grad():
        trainer.compute_loss(trainer.model, batch)

    def slope(ratio: float) -> float:
        """The gradient where the policy has already moved by this ratio."""
        logps = trainer._scored[0].detach()
        return (
            gradient_of(trainer, {**batch, "old_per_token_logps": logps - torch.tensor(ratio).log()})[1].norm().item()
        )

    gradient_of(trainer, batch)
    assert slope(1.25) > 0
    assert slope(1.35) == 0


# Killed and gone on with


def records(out: Path) -> list:
    """Rollouts and re-rolled upstream, of a stage, but for what each call took, and in what order calls ended."""
    files = [out / "rollouts.parquet", *sorted(out.glob("upstream-*.parquet"))]
    return [[dataclasses.replace(trace, calls=_timeless(trace.calls)) for trace in read_traces(file)] for file in files]


def _timeless(calls: list) -> list:
    return sorted((dataclasses.replace(call, seconds=None) for call in calls), key=repr)


STEPS = 7
JOINT = stage(STEPS, beta=0.01, nodes=BOTH, gamma=0.01)
EVERY = ["--save_steps=2", "--learning_rate=0.002"]
REROLL = 3


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """A joint stage that nobody kills."""
    out = tmp_path_factory.mktemp("whole")
    run(out, JOINT, EVERY, REROLL)
    return out


def test_joint_training_rolls_anew_with_its_own_triage(whole, images):
    """Each block on record holds what its policy said as triage, and the prompts are made of it."""
    reader = Triage(tuple(SPECIALTIES), images)
    blocks = [list(read_traces(path)) for path in sorted(whole.glob("upstream-*.parquet"))]
    assert [len(block) for block in blocks] == [3, 3, 1]
    trained = [rollout for rollout in read_traces(whole / "rollouts.parquet") if rollout.node == "attending"]
    for step, block in zip((1, 4, 7), blocks, strict=True):
        for i, rolled in enumerate(block):
            assert rolled.calls[0].node == "triage"
            assert rolled.calls[0].completion_ids
            assert rolled.referral == reader.read(rolled.calls[0].text, rolled.fields())["referral"]
            group = [rollout for rollout in trained if rollout.step == step + i]
            assert {rollout.case for rollout in group} == {rolled.case}
            assert all(rollout.opinions == rolled.opinions for rollout in group)
            assert all(rollout.referral == rolled.referral for rollout in group)


KILLS: dict[str, tuple] = {
    "before the first checkpoint": ("training_step", lambda trainer: trainer.state.global_step == 1),
    "at a block's edge": ("training_step", lambda trainer: trainer.state.global_step == 3),
    "after a block is rolled": ("_compute_loss", lambda trainer: trainer.state.global_step == 6),
    "inside a block": ("training_step", lambda trainer: trainer.state.global_step == 5),
    "at a checkpoint": ("_save_rng_state", lambda trainer: trainer.state.global_step == 4),
    "when all is trained": ("save_model", lambda trainer: trainer.state.global_step == STEPS),
}


@pytest.mark.parametrize(("method", "when"), KILLS.values(), ids=KILLS.keys())
def test_a_killed_joint_stage_resumes_to_the_same_weights_and_records(run, whole, tmp_path, method, when):
    with dying(method, when):
        run(tmp_path, JOINT, EVERY, REROLL)
    torch.manual_seed(99)  # another process begins with other random numbers
    run(tmp_path, JOINT, EVERY, REROLL)
    assert_same_weights(whole / "model", tmp_path / "model")
    assert records(whole) == records(tmp_path)
    for name in ("loss", "grad_norm", "kl", "entropy", "reward"):
        assert logged(whole, name) == logged(tmp_path, name)
    assert len(logged(tmp_path, "loss")) == STEPS
    assert not list(tmp_path.glob("checkpoints/*"))


@pytest.mark.parametrize("flag", ["--num_iterations=2", "--steps_per_generation=2"])
def test_a_stage_resumes_where_a_generation_ends(run, tmp_path, flag):
    """A checkpoint inside a generation is refused when the settings are read: TRL forgets what it was learning from."""
    of, flags = stage(6, nodes=BOTH, gamma=0.1), [flag, "--learning_rate=0.01"]  # a checkpoint every two steps
    run(tmp_path / "whole", of, flags)
    with dying("training_step", lambda trainer: trainer.state.global_step == 3):
        run(tmp_path / "killed", of, flags)
    torch.manual_seed(99)
    run(tmp_path / "killed", of, flags)
    assert_same_weights(tmp_path / "whole" / "model", tmp_path / "killed" / "model")
    assert records(tmp_path / "whole") == records(tmp_path / "killed")


def test_a_stage_learns_at_all(whole):
    """Or the tests above would compare one untrained model with another."""
    base = weights_of(folder_of("clinic:base"))
    changed = [
        name for name, weights in weights_of(whole / "model").items() if not torch.equal(weights, base[name].float())
    ]
    assert len(changed) == len(base)


# LoRA, and a frozen vision tower

LORA = ["--use_peft", "true", "--lora_r", "4", "--lora_dropout", "0", "--lora_target_modules", "all-linear"]
FAST = ["--learning_rate=0.02"]


@pytest.fixture(scope="module")
def adapters(run, tmp_path_factory):
    """Two stages of LoRA, the second from the first."""
    out = tmp_path_factory.mktemp("lora")
    first = run(out / "1", stage(2, gamma=0.5), [*LORA, *FAST])
    second = run(out / "2", stage(3, beta=0.1, gamma=0.5), [*LORA, *FAST], model=str(first))
    return first, second


def test_a_stage_of_lora_goes_on_with_the_adapter_of_the_one_before(run, adapters, tmp_path):
    first, second = adapters
    still = run(tmp_path, stage(1, beta=0.1), [*LORA, "--learning_rate=0"], model=str(first))
    assert_same_weights(first, still)
    a, b = weights_of(first), weights_of(second)
    assert a.keys() == b.keys()
    assert any(not torch.equal(a[name], b[name]) for name in a)
    assert any(weights.abs().max() > 0 for name, weights in a.items() if "lora_B" in name)


def test_the_reference_of_a_stage_is_its_first_policy(adapters):
    """Against the base, the first stage's adapter would show in the first step's KL."""
    kl = logged(adapters[1].parent, "kl")
    assert kl[0] == pytest.approx(0, abs=1e-7)
    assert kl[1] > 1e-5


def test_what_a_stage_leaves_is_one_adapter(adapters):
    """TRL saves its reference beside the one that was trained."""
    assert [path.parent for path in adapters[1].rglob("adapter_config.json")] == [adapters[1]]


def test_the_reference_of_a_whole_model_is_its_first_policy_too(run, tmp_path):
    first = run(tmp_path / "1", stage(2, gamma=0.5), FAST)
    run(tmp_path / "2", stage(2, beta=0.1, gamma=0.5), FAST, model=str(first))
    kl = logged(tmp_path / "2", "kl")
    assert kl[0] == pytest.approx(0, abs=1e-7)
    assert kl[1] > 1e-5


def test_a_killed_stage_of_lora_resumes_to_the_same_adapter(run, adapters, tmp_path):
    first, second = adapters
    of, flags = stage(3, beta=0.1, gamma=0.5), [*LORA, *FAST]
    with dying("training_step", lambda trainer: trainer.state.global_step == 2):
        run(tmp_path, of, flags, model=str(first))
    run(tmp_path, of, flags, model=str(first))
    assert_same_weights(second, tmp_path / "model")
    assert logged(second.parent, "kl") == logged(tmp_path, "kl")


def test_an_adapter_merged_answers_as_the_adapter(adapters, rollout, upstream, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    from rl.models import load_model, merge

    adapter = adapters[1]
    merge(str(adapter), tmp_path / "merged", "float32")
    processor = load_processor(str(adapter))
    inputs = tokenize(processor, [rollout.prompt(trace) for trace in upstream[:8]])
    base = AutoModelForImageTextToText.from_pretrained(folder_of("clinic:base"), dtype=torch.float32)
    with torch.no_grad():
        plain = base(**inputs).logits
        expected = PeftModel.from_pretrained(base, adapter).eval()(**inputs).logits
        merged = load_model(str(tmp_path / "merged"), torch.float32).eval()(**inputs).logits
        opened = load_model(str(adapter), torch.float32).eval()(**inputs).logits
    assert (plain - expected).abs().max() > 0.1  # the adapter says something
    torch.testing.assert_close(merged, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(opened, expected, atol=1e-4, rtol=1e-4)


def test_an_adapter_is_added_in_32_bits_and_asked_beside_its_base(adapters, upstream, rollout, tmp_path):
    """What it adds to weights of 16 bits would be lost in part, and another policy measured than was trained."""
    from rl.models import load_model, merge
    from rl.policy import load_policy

    adapter = str(adapters[1])
    for dtype in ("float32", "bfloat16"):
        merge(adapter, tmp_path / dtype, dtype)
    exact, rounded = (weights_of(tmp_path / dtype) for dtype in ("float32", "bfloat16"))
    assert {weights.dtype for weights in rounded.values()} == {torch.bfloat16}
    assert all(torch.equal(exact[name].bfloat16(), rounded[name]) for name in exact)
    opened = load_model(adapter, torch.bfloat16)
    learned = {name for name, weights in opened.named_parameters() if weights.dtype == torch.float32}
    assert learned
    assert learned == {name for name, _ in opened.named_parameters() if "lora_" in name}
    prompts = [rollout.prompt(trace) for trace in upstream[:8]]
    said = [
        [message.text for message in load_policy(of).answer(prompts)] for of in (adapter, str(tmp_path / "float32"))
    ]
    assert said[0] == said[1]


def test_an_adapter_is_trained_on_as_an_adapter_only(run, adapters, tmp_path):
    with pytest.raises(ValueError, match=r"model: '.*' is an adapter; train it on with --use_peft"):
        run(tmp_path, stage(), model=str(adapters[0]))


def test_a_frozen_vision_tower_stays_as_it_is(run, tmp_path):
    base = weights_of(folder_of("clinic:base"))
    trained = weights_of(run(tmp_path, stage(2, gamma=0.5), FAST, freeze_vision=True))
    changed = {name for name, weights in trained.items() if not torch.equal(weights, base[name].float())}
    visual = {name for name in trained if "visual" in name.split(".")}
    assert visual
    assert changed == set(trained) - visual


@pytest.mark.parametrize("again", [False, True], ids=["first stage", "second stage"])
def test_a_frozen_vision_tower_has_no_adapter_that_moves(run, adapters, tmp_path, again):
    if again:
        first = run(tmp_path / "1", stage(1, gamma=0.5), [*LORA, *FAST], freeze_vision=True)
        trained = weights_of(
            run(tmp_path / "2", stage(1, beta=0.1, gamma=0.5), [*LORA, *FAST], model=str(first), freeze_vision=True)
        )
    else:
        trained = weights_of(run(tmp_path, stage(1, gamma=0.5), [*LORA, *FAST], freeze_vision=True))
    assert trained
    assert not [name for name in trained if "visual" in name]
    assert any("visual" in name for name in weights_of(adapters[0]))  # where it is not frozen, it has


def test_freezing_finds_the_tower(policy):
    model = type(policy.model)(policy.model.config)
    freeze_vision(model)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if ".visual." in f".{name}"}
    assert len(frozen) > 10


# Images


def test_images_travel_to_the_model_in_any_colour(policy, images):
    """A grey and an RGBA picture become what the processor takes."""
    for mode in ("L", "RGBA", "P"):
        ref = images.put(Image.new(mode, (40, 30)))
        state = {"question": "?", "options": [], "images": [ref], "context": None, "opinions": []}
        assert "pixel_values" in tokenize(policy.processor, [attending_messages(state, images)])


def test_where_all_prompts_show_the_same_nothing_is_said_of_the_images(make_trainer):
    trainer = make_trainer()
    batch = batch_of(trainer)
    images = len(batch["image_grid_thw"])
    batch["pixel_values"] = batch["pixel_values"][: len(batch["pixel_values"]) // images].repeat(images, 1)
    gradient_of(trainer, batch)
    assert "image_effect" not in trainer._metrics["train"]
