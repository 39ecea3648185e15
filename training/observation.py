"""A step before its update: sample G images a prompt, judge them, and decide which tokens matter."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from gcpo_bench import streams
from gcpo_bench.config import RunConfig
from gcpo_bench.datasets import Prompt, prompts_by_task
from gcpo_bench.errors import ConfigError
from gcpo_bench.variants import SIGNALS, signals_read

from .advantages import group_advantages
from .decoding import sample_in_batches
from .learner import Learner
from .logprobs import token_logprobs
from .metrics import Stopwatch
from .selectors import select
from .signals import group_similarity_of
from .types import Observation, RewardOutput, Rollout, TokenSignals


def require_prompts(config: RunConfig) -> None:
    """Raises ConfigError where a step would ask for more different prompts of a task than there are."""
    tasks = prompts_by_task(config.data.prompts)
    most, tag = -(-config.sampling.prompts_per_step // len(tasks)), min(tasks, key=lambda each: len(tasks[each]))
    if most > len(tasks[tag]):
        raise ConfigError(
            f"a step takes {most} prompts of a task, and {config.data.prompts} has {len(tasks[tag])} of {tag}",
            hint=f"lower sampling.prompts_per_step to {len(tasks) * len(tasks[tag])} or less",
        )


def draw_prompts(config: RunConfig, step: int) -> list[Prompt]:
    """Distinct prompts, the tasks in turn."""
    tasks = prompts_by_task(config.data.prompts)
    count = config.sampling.prompts_per_step
    first = (step - 1) * count  # so that fewer prompts than tasks still visit every task
    turns = [list(tasks)[(first + i) % len(tasks)] for i in range(count)]
    rng = streams.generator(config.seed, "prompts", step)
    order = {tag: iter(rng.permutation(len(tasks[tag]))) for tag in tasks if tag in turns}
    return [tasks[tag][next(order[tag])] for tag in turns]


def observe(
    learner: Learner, prompts: Sequence[Prompt], stream: str, clock: Stopwatch, *, every_signal: bool = False
) -> Observation:
    """The whole of it; `stream` names the noise that images are drawn with.

    `every_signal` computes those too that no selector reads.
    """
    with clock.phase("rollout"):
        rollout = roll_out(learner, prompts, stream)
    with clock.phase("reward"):
        reward = judge(learner, rollout)
        rewards_B = torch.tensor(reward.values_B, dtype=torch.float32, device=rollout.tokens_BT.device)
    with clock.phase("reference"), torch.no_grad():
        ref_logprobs_BT = reference_logprobs(learner, rollout)
    with clock.phase("selection"), torch.no_grad():
        read = SIGNALS if every_signal else signals_read(learner.config.selection)
        signals = token_signals(learner, rollout, f"selection/{stream}", read)
        selection = select(
            learner.selectors,
            signals,
            overlap=learner.config.selection.overlap,
            complement=learner.config.selection.complement,
        )
    return Observation(
        rollout=rollout,
        reward=reward,
        rewards_B=rewards_B,
        advantages_B=group_advantages(rewards_B, rollout.group_size, learner.config.advantages.std_epsilon),
        signals=signals,
        selection=selection,
        ref_logprobs_BT=ref_logprobs_BT,
    )


def roll_out(learner: Learner, prompts: Sequence[Prompt], stream: str) -> Rollout:
    config, policy = learner.config.sampling, learner.policy
    tokens = policy.grid[0] * policy.grid[1]
    uniforms_BT = np.stack(
        [
            streams.uniforms(learner.config.seed, stream, p.id, g, tokens)
            for p in prompts
            for g in range(config.group_size)
        ]
    )
    samples = sample_in_batches(
        policy,
        [prompt.text for prompt in prompts for _ in range(config.group_size)],
        torch.from_numpy(uniforms_BT).to(learner.config.policy.device),
        batch_rows=config.batch_rows,
        workers=learner.workers,
        guidance_scale=config.guidance_scale,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        entropy_source=learner.config.selection.entropy_source,
    )
    return Rollout(
        prompts=tuple(prompts),
        group_size=config.group_size,
        grid=policy.grid,
        tokens_BT=samples.tokens_BT,
        logprobs_BT=samples.logprobs_BT,
        entropy_BT=samples.entropy_BT,
    )


def judge(learner: Learner, rollout: Rollout) -> RewardOutput:
    """Rewards of whole groups: a reward may compare the images of a prompt."""

    def of(prompts: slice) -> RewardOutput:
        rows = slice(prompts.start * rollout.group_size, prompts.stop * rollout.group_size)
        return learner.reward(learner.policy.decode(rollout.tokens_BT[rows]), rollout.prompts_B[rows])

    count = len(rollout.prompts)
    found = list(learner.workers.map(of, learner.workers.parts(count, count)))  # one call a process
    return RewardOutput(
        values_B=[value for output in found for value in output.values_B],
        anomalies=_joined([output.anomalies for output in found]),
        terms=_joined([output.terms for output in found]),
    )


def _joined(parts: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: [value for part in parts for value in part.get(name, ())] for name in names}


def reference_logprobs(learner: Learner, rollout: Rollout) -> Tensor:
    """(B, T), a micro-batch a thread and process."""
    texts_B, tokens_BT = rollout.texts_B, rollout.tokens_BT
    parts = learner.workers.parts(len(tokens_BT), learner.config.optimizer.micro_batch_rows)
    with learner.reference() as reference:
        found = learner.workers.map(lambda rows: token_logprobs(reference, texts_B[rows], tokens_BT[rows]), parts)
        return torch.cat(list(found))


def token_signals(learner: Learner, rollout: Rollout, stream: str, read: Collection[str] = SIGNALS) -> TokenSignals:
    """What selectors may look at; similarity and noise are NaN where they are not to be `read`, and cost nothing."""
    nothing_BT = torch.full_like(rollout.entropy_BT[:1, :1], torch.nan).expand(rollout.entropy_BT.shape)
    return TokenSignals(
        grid=rollout.grid,
        entropy_BT=rollout.entropy_BT,
        similarity_BT=_similarity(learner, rollout) if "similarity" in read else nothing_BT,
        logprobs_BT=rollout.logprobs_BT,
        noise_BT=_noise(learner, rollout, stream) if "noise" in read else nothing_BT,
    )


def _similarity(learner: Learner, rollout: Rollout) -> Tensor:
    codes_U, index_BT = distinct(rollout.tokens_BT, learner.policy.vocab_size)
    vectors_1UD = learner.policy.embed(codes_U[None], learner.config.selection.similarity_embedding)
    return group_similarity_of(vectors_1UD[0], index_BT, rollout.group_size)


def _noise(learner: Learner, rollout: Rollout, stream: str) -> Tensor:
    # one generator a group, not one an image: the group is always together, and making them would be most of the cost
    noise_PGT = [
        streams.generator(learner.config.seed, stream, prompt.id).random(
            (rollout.group_size, rollout.tokens_BT.shape[1]), dtype=np.float32
        )
        for prompt in rollout.prompts
    ]
    return torch.from_numpy(np.concatenate(noise_PGT)).to(rollout.tokens_BT.device)


def distinct(tokens_BT: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """int64 (U,): the different tokens in rising order, and (B, T): which of them each is."""
    present_V = torch.zeros(vocab_size, dtype=torch.bool, device=tokens_BT.device)
    present_V[tokens_BT] = True
    return present_V.nonzero()[:, 0], (present_V.cumsum(0) - 1)[tokens_BT]
