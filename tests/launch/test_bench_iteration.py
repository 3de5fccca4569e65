from launch.bench.iteration import SpokenFor
from launch.bench.iteration_config import get_config
from mlagent_jax.policy.base import Reply, Request


class OneByOne:
    """Answers one request a poll, the newest first."""

    name = "sampler"

    def __init__(self, prefix: str) -> None:
        self.prefix, self.waiting = prefix, []

    def submit(self, request):
        self.waiting.append(request)

    def poll(self):
        return [self.answer(self.waiting.pop())] if self.waiting else []

    def answer(self, request):
        text = f"{self.prefix} {request.id}"
        tokens = tuple(range(len(request.id)))
        return Reply(request_id=request.id, text=text, finish="stop", tokens=tokens)

    def num_pending(self):
        return len(self.waiting)

    def close(self):
        self.waiting = []


class AtOnce(OneByOne):
    """Answers everything at the next poll, as the scripted expert does."""

    def poll(self):
        waiting, self.waiting = self.waiting, []
        return [self.answer(request) for request in waiting]


def test_a_reply_has_the_tokens_of_the_sampler_and_the_text_of_the_expert():
    policy = SpokenFor(OneByOne("random"), AtOnce("expert"))
    for name in ("a", "bb", "ccc"):
        policy.submit(Request(id=name, messages=(), seed=0))
    replies = [reply for _ in range(3) for reply in policy.poll()]
    assert policy.num_pending() == 0
    assert [r.text for r in replies] == ["expert ccc", "expert bb", "expert a"]
    assert [len(r.tokens) for r in replies] == [3, 2, 1]


def test_the_measured_run_executes_every_script_and_compiles_one_length():
    config = get_config()
    assert not config.env.use_cache
    longest = config.prompt.max_prompt_tokens + config.sample.max_reply_tokens
    assert config.ppo.seq_lens == (longest,)
