"""Scores, estimates and updates on a tiny model."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlagent_jax.config import KlConfig, PpoConfig
from mlagent_jax.model import qwen2
from mlagent_jax.model.critic import init_critic, init_value_head, values
from mlagent_jax.model.logprobs import token_logprobs
from mlagent_jax.rl.batch import TokenSample, pad_samples
from mlagent_jax.rl.estimate import make_estimate_fn
from mlagent_jax.rl.learner import Learner, minibatch_rows
from mlagent_jax.rl.objective import make_score_fn, policy_loss
from mlagent_jax.rl.passes import RowPasses, take_rows
from mlagent_jax.rl.ppo import PpoOptimizers, init_ppo_state, make_ppo_step
from tests.rl.bandit import MODEL, NUM_SAMPLES, Bandit, make_config, make_policy_params

GRAPHDEF = qwen2.make_graphdef(MODEL)
NUM_ROWS = 8
# Plain gradient descent shows gradients as they are.
OPTIMIZERS = PpoOptimizers(actor=optax.sgd(0.1), critic=optax.sgd(0.1))


# A test compiles only what no test before it has compiled.
score_fn = functools.cache(functools.partial(make_score_fn, GRAPHDEF))
estimate_fn = functools.cache(make_estimate_fn)
step_fn = functools.cache(
    functools.partial(make_ppo_step, GRAPHDEF, optimizers=OPTIMIZERS, temperature=1.0)
)


def make_samples(num=NUM_ROWS, seed=0):
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(num):
        prompt, reply = rng.integers(3, 16, 3), rng.integers(3, 16, rng.integers(1, 6))
        samples.append(
            TokenSample(
                prompt=prompt.tolist(),
                reply=reply.tolist(),
                logprobs=np.full(len(reply), -2.0).tolist(),
                reward=float(rng.uniform()),
            )
        )
    return samples


def make_models(seed=0):
    actor = make_policy_params(seed)
    return actor, init_critic(MODEL, actor, jax.random.key(seed))


def make_ppo_batch(cfg, samples, seq_len=12, temperature=1.0):
    actor, critic = make_models()
    reference = make_policy_params(seed=1)
    batch = pad_samples(samples, (seq_len,))
    score = score_fn(scoring_part(cfg), temperature=temperature)
    scores = score(actor, reference, critic, batch)
    return estimate_fn(cfg)(batch, scores, jnp.float32(cfg.kl_coef))


def scoring_part(cfg):
    """Returns `cfg` without what does not matter to scores."""
    kept = ("states_per_update", "minibatch_size", "micro_batch_size", "kl_coef")
    return PpoConfig(**{name: getattr(cfg, name) for name in kept})


def make_cfg(**changes):
    settings = {
        "states_per_update": NUM_ROWS,
        "minibatch_size": NUM_ROWS,
        "micro_batch_size": NUM_ROWS,
        "kl_coef": 0.1,
    }
    return PpoConfig(**(settings | changes))


def run_step(cfg, batch, **kwargs):
    state = init_ppo_state(*make_models(), OPTIMIZERS)
    return step_fn(cfg=cfg, **kwargs)(state, batch)


def assert_trees_close(a, b, atol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def test_scores_are_those_of_the_three_models():
    actor, critic = make_models()
    batch = pad_samples(make_samples(), (12,))
    arrays = batch.tokens_BT, batch.positions_BT, batch.segment_ids_BT
    ppo_batch, _ = make_ppo_batch(make_cfg(micro_batch_size=2), make_samples())
    mask_BT = batch.response_mask_BT
    old_BT = token_logprobs(GRAPHDEF, actor, *arrays).logprobs_BT * mask_BT
    ref_params = make_policy_params(seed=1)
    ref_BT = token_logprobs(GRAPHDEF, ref_params, *arrays).logprobs_BT * mask_BT
    np.testing.assert_allclose(ppo_batch.old_logprobs_BT, old_BT, atol=1e-5)
    np.testing.assert_allclose(ppo_batch.ref_logprobs_BT, ref_BT, atol=1e-5)
    # The value that token t is judged by was read off after token t - 1.
    after_BT = values(GRAPHDEF, critic, *arrays)
    expected_BT = np.pad(after_BT, ((0, 0), (1, 0)))[:, :-1] * mask_BT
    np.testing.assert_allclose(ppo_batch.values_BT, expected_BT, atol=1e-5)


def test_the_temperature_of_the_sampler_is_the_temperature_of_the_scores():
    actor, _ = make_models()
    batch = pad_samples(make_samples(), (12,))
    arrays = batch.tokens_BT, batch.positions_BT, batch.segment_ids_BT
    ppo_batch, _ = make_ppo_batch(make_cfg(), make_samples(), temperature=0.5)
    expected_BT = token_logprobs(GRAPHDEF, actor, *arrays, temperature=0.5).logprobs_BT
    np.testing.assert_allclose(
        ppo_batch.old_logprobs_BT, expected_BT * batch.response_mask_BT, atol=1e-5
    )


def test_without_kl_penalty_no_reference_is_needed():
    cfg = make_cfg(kl_coef=0.0)
    actor, critic = make_models()
    batch = pad_samples(make_samples(), (12,))
    scores = score_fn(cfg, temperature=1.0)(actor, None, critic, batch)
    np.testing.assert_array_equal(scores.ref_logprobs_BT, scores.old_logprobs_BT)
    _, metrics = estimate_fn(cfg)(batch, scores, jnp.float32(0.0))
    assert metrics["kl_to_reference"] == 0


def test_a_fractional_reward_reaches_returns_and_advantages():
    samples = [dataclasses.replace(s, reward=0.7) for s in make_samples()]
    cfg = make_cfg(kl_coef=0.0, whiten_advantages=False, gae_lambda=1.0)
    batch, metrics = make_ppo_batch(cfg, samples)
    mask = batch.response_mask_BT > 0
    np.testing.assert_allclose(batch.returns_BT[mask], 0.7, rtol=1e-5)
    np.testing.assert_allclose(
        batch.advantages_BT[mask], 0.7 - batch.values_BT[mask], rtol=1e-5
    )
    np.testing.assert_allclose(metrics["return_mean"], 0.7, rtol=1e-5)


def test_advantages_stay_in_the_row_and_on_the_reply_of_their_sample():
    samples = make_samples()
    cfg = make_cfg(whiten_advantages=False)
    batch, _ = make_ppo_batch(cfg, samples)
    richer = [dataclasses.replace(samples[3], reward=samples[3].reward + 1.0)]
    changed, _ = make_ppo_batch(cfg, [*samples[:3], *richer, *samples[4:]])
    difference_BT = np.asarray(changed.advantages_BT - batch.advantages_BT)
    expected_BT = np.zeros_like(difference_BT)
    start = len(samples[3].prompt)
    expected_BT[3, start : start + len(samples[3].reply)] = 1.0
    np.testing.assert_allclose(difference_BT, expected_BT, atol=1e-5)


def test_padding_length_changes_no_update():
    cfg = make_cfg()
    got, got_metrics = run_step(cfg, make_ppo_batch(cfg, make_samples(), 20)[0])
    expected, metrics = run_step(cfg, make_ppo_batch(cfg, make_samples())[0])
    assert_trees_close(got, expected, atol=1e-6)
    assert_trees_close(got_metrics, metrics, atol=1e-5)


def test_dropped_samples_change_nothing():
    cfg = make_cfg(entropy_coef=0.1)
    got, got_metrics = run_step(
        cfg, make_ppo_batch(cfg, [*make_samples(4), *[None] * 4])[0]
    )
    half = make_cfg(
        states_per_update=4, minibatch_size=4, micro_batch_size=4, entropy_coef=0.1
    )
    expected, metrics = run_step(half, make_ppo_batch(half, make_samples(4))[0])
    assert_trees_close(got, expected, atol=1e-6)
    assert_trees_close(got_metrics, metrics, atol=1e-5)


def test_micro_batches_accumulate_the_gradient_of_the_whole():
    # Ragged replies: a mean of micro-batch means would differ.
    batch, _ = make_ppo_batch(make_cfg(), make_samples())
    cfg = make_cfg(micro_batch_size=2, entropy_coef=0.1)
    got, got_metrics = run_step(cfg, batch)
    expected, metrics = run_step(make_cfg(entropy_coef=0.1), batch)
    assert_trees_close(got, expected, atol=1e-6)
    assert_trees_close(got_metrics, metrics, atol=1e-5)


def test_the_first_step_follows_the_policy_gradient():
    cfg = make_cfg()
    batch, _ = make_ppo_batch(cfg, make_samples())
    actor, _ = make_models()

    def objective(params):
        logprobs_BT = token_logprobs(
            GRAPHDEF, params, batch.tokens_BT, batch.positions_BT, batch.segment_ids_BT
        ).logprobs_BT
        weighted_BT = logprobs_BT * batch.advantages_BT * batch.response_mask_BT
        return weighted_BT.sum() / batch.response_mask_BT.sum()

    expected = jax.tree.map(lambda p, g: p + 0.1 * g, actor, jax.grad(objective)(actor))
    state, metrics = run_step(cfg, batch)
    assert_trees_close(state.actor.params, expected, atol=1e-6)
    assert metrics["clip_frac"] == 0
    np.testing.assert_allclose(metrics["approx_kl"], 0.0, atol=1e-6)


def test_warmup_trains_the_critic_and_leaves_the_actor_alone():
    cfg = make_cfg()
    batch, _ = make_ppo_batch(cfg, make_samples())
    state, metrics = run_step(cfg, batch, is_warmup=True)
    full, _ = run_step(cfg, batch)
    actor, _ = make_models()
    jax.tree.map(np.testing.assert_array_equal, state.actor.params, actor)
    assert state.actor.step == 0
    assert_trees_close(state.critic.params, full.critic.params, atol=1e-7)
    assert set(metrics) == {"value_loss", "critic_grad_norm"}


def test_a_minibatch_without_tokens_moves_nothing():
    cfg = make_cfg()
    batch, _ = make_ppo_batch(cfg, [None] * NUM_ROWS)
    state, metrics = run_step(cfg, batch)
    jax.tree.map(np.testing.assert_array_equal, state.actor.params, make_models()[0])
    jax.tree.map(np.testing.assert_array_equal, state.critic.params, make_models()[1])
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.torch
def test_an_update_equals_torch_autograd_on_the_logits():
    torch = pytest.importorskip("torch")
    cfg = make_cfg(clip_eps=0.1, entropy_coef=0.05)
    batch, _ = make_ppo_batch(cfg, make_samples())
    actor, critic = make_policy_params(seed=2), make_models()[1]  # ratios are not 1

    def logits_fn(params):
        hidden_BTD = qwen2.forward(
            GRAPHDEF,
            params,
            batch.tokens_BT,
            batch.positions_BT,
            segment_ids_BT=batch.segment_ids_BT,
        )
        return qwen2.unembed(GRAPHDEF, params, hidden_BTD)

    logits_BTV, pull_back = jax.vjp(logits_fn, actor)
    logits = torch.tensor(np.asarray(logits_BTV), requires_grad=True)
    tokens = torch.tensor(np.asarray(batch.tokens_BT), dtype=torch.int64)[:, 1:, None]
    chosen = torch.tensor(np.asarray(batch.response_mask_BT))[:, 1:] > 0
    logprobs = torch.log_softmax(logits[:, :-1], dim=-1)
    new = logprobs.gather(2, tokens)[..., 0][chosen]
    old = torch.tensor(np.asarray(batch.old_logprobs_BT))[:, 1:][chosen]
    advantages = torch.tensor(np.asarray(batch.advantages_BT))[:, 1:][chosen]
    ratio = torch.exp(new - old)
    gain = torch.minimum(ratio * advantages, ratio.clamp(0.9, 1.1) * advantages)
    entropy = -(logprobs.exp() * logprobs).sum(-1)[chosen].mean()
    (-gain.mean() - 0.05 * entropy).backward()
    (grads,) = pull_back(jnp.array(logits.grad.numpy()))
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, actor, grads)

    state = init_ppo_state(actor, critic, OPTIMIZERS)
    state, metrics = step_fn(cfg=cfg)(state, batch)
    assert_trees_close(state.actor.params, expected, atol=1e-5)
    assert metrics["clip_frac"] > 0.1
    np.testing.assert_allclose(metrics["policy_loss"], -gain.mean().item(), rtol=1e-4)
    np.testing.assert_allclose(metrics["entropy"], entropy.item(), rtol=1e-4)


def test_every_epoch_deals_every_row_once_and_repeats_by_seed():
    cfg = make_cfg(num_epochs=3, minibatch_size=2, micro_batch_size=2)
    rows = np.stack(list(minibatch_rows(cfg, seed=1, update=5)))
    assert rows.shape == (12, 2)
    for epoch in rows.reshape(3, NUM_ROWS):
        assert sorted(epoch) == list(range(NUM_ROWS))
    np.testing.assert_array_equal(rows, list(minibatch_rows(cfg, seed=1, update=5)))
    assert not np.array_equal(rows, list(minibatch_rows(cfg, seed=1, update=6)))


def test_a_minibatch_keeps_the_rows_of_a_sample_together():
    cfg = make_cfg()
    batch, _ = make_ppo_batch(cfg, make_samples())
    part = take_rows(batch, jnp.array([5, 2]))
    for field in dataclasses.fields(batch):
        whole = np.asarray(getattr(batch, field.name))
        np.testing.assert_array_equal(getattr(part, field.name), whole[[5, 2]])


def test_an_update_takes_the_scores_that_were_begun(monkeypatch):
    calls = []
    score = RowPasses.score
    monkeypatch.setattr(
        RowPasses, "score", lambda self, *args: calls.append(1) or score(self, *args)
    )
    bandit, params = Bandit(drop=(0, 3)), make_policy_params()
    learner = Learner(
        make_config(), graphdef=bandit.graphdef, model_cfg=MODEL, sft_params=params
    )
    state = learner.init_state(params)
    rollout = bandit.collect(0, params, functools.partial(learner.begin, state))
    state, _ = learner.update(state, rollout)
    assert len(calls) == 1
    learner.update(state, rollout)  # nothing was begun for this one
    assert len(calls) == 2


def test_scores_of_other_replies_are_not_used():
    bandit, params = Bandit(), make_policy_params()
    learner = Learner(
        make_config(), graphdef=bandit.graphdef, model_cfg=MODEL, sft_params=params
    )
    rollout = bandit.collect(0, params)
    expected, _ = learner.update(learner.init_state(params), rollout)
    samples = rollout.token_samples()
    state = learner.init_state(params)
    learner.begin(state, [*samples[1:], samples[0]])  # each in another row
    result, _ = learner.update(state, rollout)
    jax.tree.map(np.testing.assert_array_equal, result, expected)


def test_the_reference_outlives_the_states_made_from_it():
    bandit, params = Bandit(), make_policy_params()
    learner = Learner(
        make_config(), graphdef=bandit.graphdef, model_cfg=MODEL, sft_params=params
    )
    state = learner.init_state(params)
    rollout = bandit.collect(0, state.actor.params)
    state, metrics = learner.update(state, rollout)
    assert metrics["kl_to_reference"] == 0
    np.testing.assert_allclose(metrics["logprob_mismatch"], 0.0, atol=1e-5)
    state, metrics = learner.update(state, rollout)
    assert metrics["kl_to_reference"] != 0
    jax.tree.map(np.testing.assert_array_equal, params, make_policy_params())
    assert metrics["response_tokens"] == 2 * NUM_SAMPLES


def shared_state(optimizers=OPTIMIZERS):
    actor = make_policy_params()
    return init_ppo_state(actor, init_value_head(MODEL, jax.random.key(0)), optimizers)


def test_a_shared_trunk_learns_from_both_losses():
    cfg = make_cfg(value_model="shared", kl_coef=0.0)
    state = shared_state()
    batch = pad_samples(make_samples(), (12,))
    score = make_score_fn(GRAPHDEF, cfg, temperature=1.0)
    scores = score(state.actor.params, None, state.critic.params, batch)
    batch, _ = estimate_fn(cfg)(batch, scores, jnp.float32(0.0))

    def objective(actor, head):
        arrays = batch.tokens_BT, batch.positions_BT, batch.segment_ids_BT
        logprobs_BT = token_logprobs(GRAPHDEF, actor, *arrays).logprobs_BT
        after_BT = values(GRAPHDEF, {"trunk": actor, **head}, *arrays)
        values_BT = jnp.pad(after_BT[:, :-1], ((0, 0), (1, 0)))
        terms_BT = -logprobs_BT * batch.advantages_BT
        terms_BT += 0.25 * jnp.square(values_BT - batch.returns_BT)
        return (terms_BT * batch.response_mask_BT).sum() / batch.response_mask_BT.sum()

    actor, head = state.actor.params, state.critic.params
    grads = jax.grad(objective, argnums=(0, 1))(actor, head)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, (actor, head), grads)
    new, metrics = step_fn(cfg=cfg)(state, batch)
    assert_trees_close((new.actor.params, new.critic.params), expected, atol=1e-6)
    assert {"policy_loss", "value_loss", "actor_grad_norm"} <= set(metrics)


def test_warmup_of_a_shared_trunk_trains_the_head_alone():
    cfg = make_cfg(value_model="shared")
    batch, _ = make_ppo_batch(make_cfg(), make_samples())
    state, _ = step_fn(cfg=cfg, is_warmup=True)(shared_state(), batch)
    jax.tree.map(
        np.testing.assert_array_equal, state.actor.params, make_policy_params()
    )
    head = shared_state().critic.params["value_head"]["kernel"]
    assert np.abs(np.asarray(state.critic.params["value_head"]["kernel"] - head)).max()


def test_group_estimators_run_without_a_critic():
    cfg = make_cfg(
        estimator="grpo", states_per_update=4, samples_per_state=2, kl_coef=0.0
    )
    actor = make_policy_params()
    batch = pad_samples(make_samples(), (12,))
    scores = make_score_fn(GRAPHDEF, cfg, temperature=1.0)(actor, None, None, batch)
    batch, _ = estimate_fn(cfg)(batch, scores, jnp.float32(0.0))
    state, metrics = step_fn(cfg=cfg)(init_ppo_state(actor, None, OPTIMIZERS), batch)
    assert state.critic is None
    assert "value_loss" not in metrics
    assert metrics["actor_grad_norm"] > 0


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kl_in_the_loss_pulls_towards_the_reference(estimator):
    cfg = make_cfg(
        kl=KlConfig(place="loss", estimator=estimator), kl_coef=1.0, entropy_coef=0.0
    )
    batch, _ = make_ppo_batch(cfg, make_samples())
    # No advantage: all that is left is the penalty.
    batch = dataclasses.replace(batch, advantages_BT=0 * batch.advantages_BT)

    def penalty(params):
        d_BT = (
            token_logprobs(
                GRAPHDEF,
                params,
                batch.tokens_BT,
                batch.positions_BT,
                batch.segment_ids_BT,
            ).logprobs_BT
            - batch.ref_logprobs_BT
        )
        k_BT = d_BT**2 / 2 if estimator == "k2" else jnp.exp(-d_BT) - 1 + d_BT
        return (k_BT * batch.response_mask_BT).sum() / batch.response_mask_BT.sum()

    actor, critic = make_models()
    loss, grads = jax.value_and_grad(penalty)(actor)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, actor, grads)
    state = init_ppo_state(actor, critic, OPTIMIZERS, kl_coef=1.0)
    state, metrics = step_fn(cfg=cfg)(state, batch)
    assert_trees_close(state.actor.params, expected, atol=1e-6)
    np.testing.assert_allclose(metrics["kl_loss"], loss, rtol=1e-5)


def test_masked_tokens_have_exactly_no_gradient():
    cfg = make_cfg(entropy_coef=0.1, kl=KlConfig(place="loss"))
    batch, _ = make_ppo_batch(cfg, make_samples())

    def loss(new_logprobs_BT, entropy_BT):
        num_tokens = batch.response_mask_BT.sum()
        coef = jnp.float32(0.3)
        total, _ = policy_loss(
            cfg, new_logprobs_BT, entropy_BT, batch, num_tokens, coef
        )
        return total

    grads = jax.grad(loss, argnums=(0, 1))(batch.old_logprobs_BT - 0.1, batch.values_BT)
    off_BT = np.asarray(batch.response_mask_BT) == 0
    for grad_BT in grads:
        assert np.all(np.asarray(grad_BT)[off_BT] == 0.0)
        assert np.any(np.asarray(grad_BT)[~off_BT] != 0.0)
