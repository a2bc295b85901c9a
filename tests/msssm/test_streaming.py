"""A classifier in chunks, step by step, and as a stream, against the whole run."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from msssm import Backbone, MultiScaleSSM, SequenceClassifier, StreamingClassifier
from msssm.baselines import S4D, Mamba
from tests.support.tolerances import OUTPUT, assert_near

STACKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "prenorm": ({"prenorm": True}, {"skip": True, "mixer": "softmax", "mixer_heads": 2}),
    "normed": ({"prenorm": True}, {"selection_norm": True, "dt_rank": 3}),
    "batch norm": ({"norm": "batch"}, {"discretization": "euler", "mixer": "fixed"}),
    "batch norm in front": ({"norm": "batch", "prenorm": True}, {"mixer": "sum", "kernel_size": 2}),
    "no gate": ({"glu": False}, {"levels": 0, "state_size": 3}),
    "last position": ({"pooling": "last"}, {}),
    "odd width": ({"d_model": 21}, {"kernel_size": 1, "dt_rank": 3, "mixer_heads": 3}),
}
OTHER_LAYERS = {
    "s4": partial(MultiScaleSSM, ssm="s4"),
    "s4, complex": partial(MultiScaleSSM, ssm="s4", diagonal="complex", kernel_size=2, mixer_heads=2, skip=True),
    "gates of the band": partial(MultiScaleSSM, selective_input="band"),
    "convolutions": partial(MultiScaleSSM, decomposition="conv"),
    "none": partial(MultiScaleSSM, ssm="none"),
    "S4D": S4D,
    "Mamba": Mamba,
}


def classifier(layer: Any, pooling: Any = "mean", **options: Any) -> SequenceClassifier:
    """Two blocks, twelve channels in and seven classes, with statistics and norms that are not the initial ones."""
    torch.manual_seed(0)
    backbone = Backbone(layer, **{"d_model": 20, "n_layers": 2, **options})
    model = SequenceClassifier(nn.Linear(12, backbone.d_model), backbone, 7, pooling)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm | nn.BatchNorm1d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
        model(torch.randn(4, 50, 12))  # batch norm's statistics
    return model.eval()


def prefixes(model: SequenceClassifier, x: Tensor) -> Tensor:
    """Logits of the first 1, 2, ... positions, each from a run of its own; (B, L, K)."""
    return torch.stack([model(x[:, : t + 1]) for t in range(x.shape[1])], 1)


def steps(model: Any, x: Tensor) -> Tensor:
    state, outputs = model.initial_state(len(x)), []
    for t in range(x.shape[1]):
        logits, state = model.step(x[:, t], state)
        outputs.append(logits.clone())
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("name", [*STACKS, *OTHER_LAYERS])
@torch.no_grad()
def test_every_step_has_the_logits_of_the_run_so_far(name: str) -> None:
    """Steps and a stream in float64 and in float32."""
    stack, options = STACKS.get(name, ({}, {}))
    model = classifier(OTHER_LAYERS.get(name) or partial(MultiScaleSSM, **options), **stack)
    x = torch.randn(3, 25, 12)
    streaming = StreamingClassifier(model)
    fast, plain = steps(streaming, x), steps(model, x)
    expected = prefixes(model.double(), x.double())
    assert_near(steps(model, x.double()), expected, OUTPUT[torch.float64])
    assert_near(plain, expected, OUTPUT[torch.float32])
    assert_near(fast, expected, OUTPUT[torch.float32])


@pytest.mark.parametrize("pooling", ["mean", "last"])
@torch.no_grad()
def test_chunks_and_lengths_equal_the_whole(pooling: str) -> None:
    """Chunks of any size, then a last one in which the rows end at different lengths; then a single step."""
    model = classifier(MultiScaleSSM, pooling).double()
    x = torch.randn(3, 30, 12, dtype=torch.float64)
    lengths = torch.tensor([30, 22, 17])
    state = None
    for chunk in (x[:, :1], x[:, 1:9], x[:, 9:17]):
        _, state = model(chunk, state=state, return_state=True)
    logits, state = model(x[:, 17:], lengths - 17, state, return_state=True)
    assert_near(logits, model(x, lengths), OUTPUT[torch.float64])
    assert state.positions.tolist() == lengths.tolist()
    more = torch.randn(3, 12, dtype=torch.float64)
    after, _ = model.step(more, state)
    for row, length in enumerate(lengths):
        whole = torch.cat((x[row : row + 1, :length], more[row].view(1, 1, 12)), 1)
        assert_near(after[row : row + 1], model(whole), OUTPUT[torch.float64])


@torch.no_grad()
def test_tokens_step_too() -> None:
    torch.manual_seed(0)
    model = SequenceClassifier(nn.Embedding(9, 16), Backbone(MultiScaleSSM, 16, 1), 3).double().eval()
    tokens = torch.randint(9, (2, 12))
    assert_near(steps(model, tokens), prefixes(model, tokens), OUTPUT[torch.float64])


@pytest.mark.slow
@torch.no_grad()
def test_ptbxl_model_over_hundreds_of_steps_in_float32() -> None:
    """The model of configs/ptbxl.yaml: 3 s of 12 leads at 100 Hz, against float64 over the whole signal."""
    torch.manual_seed(0)
    layer = partial(MultiScaleSSM, levels=3, kernel_size=2, state_size=26)
    model = SequenceClassifier(nn.Linear(12, 256), Backbone(layer, 256, 10), 71).eval()
    x = torch.randn(1, 300, 12)
    last = steps(StreamingClassifier(model), x)[:, -1]
    assert_near(last, model.double()(x.double()), OUTPUT[torch.float32])


@torch.no_grad()
def test_the_mean_does_not_drift() -> None:
    """After 2^25 positions a sum in float32 no longer takes in a step of this size; ours does."""
    model = classifier(MultiScaleSSM)
    for stepper in (model, StreamingClassifier(model)):
        state = stepper.initial_state(1)
        for _ in range(200):
            _, state = stepper.step(torch.ones(1, 12), state)
        settled = model.backbone.step(model.encoder(torch.ones(1, 12)), model.initial_state(1).backbone)[0].double()
        long = state._replace(total=settled * 2.0**25, positions=torch.tensor([2**25]))
        before = long.total.clone()
        _, after = stepper.step(torch.ones(1, 12), long)
        added = (after.total - before).abs()
        assert added.max() > 0.1
        assert after.positions.tolist() == [2**25 + 1]
        assert (before.float() + added.float() == before.float()).float().mean() > 0.3  # float32 would have lost it


@torch.no_grad()
def test_rows_are_independent_and_states_stay_as_they_are() -> None:
    model = classifier(MultiScaleSSM)
    streaming, x = StreamingClassifier(model), torch.randn(4, 12, 12)
    together = steps(streaming, x)
    alone = torch.cat([steps(streaming, row.unsqueeze(0)) for row in x])
    assert_near(together, alone, OUTPUT[torch.float32])
    _, state = streaming.feed(x, streaming.initial_state(4))
    before = copy.deepcopy(state)
    for call in (lambda: streaming.step(x[:, 0], state), lambda: streaming.feed(x, state)):
        call()
        for one, other in zip(tree_leaves(state), tree_leaves(before), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("ssm", ["s6", "s4"])
@torch.no_grad()
def test_a_stream_may_be_fed_in_chunks_of_any_length(ssm: str) -> None:
    model = classifier(partial(MultiScaleSSM, ssm=ssm))
    streaming, x = StreamingClassifier(model), torch.randn(2, 40, 12)
    state = streaming.initial_state(2)
    for start, stop in ((0, 25), (25, 26), (26, 26), (26, 40)):
        logits, state = streaming.feed(x[:, start:stop], state)
        assert_near(logits, model(x[:, :stop]), OUTPUT[torch.float32])
    assert state.positions.tolist() == [40, 40]


@pytest.mark.parametrize("ssm", ["s6", "s4"])
def test_threads_may_share_a_stream(ssm: str) -> None:
    """Each with a state and a batch size of its own; copies and pickles answer alike."""
    original = StreamingClassifier(classifier(partial(MultiScaleSSM, ssm=ssm)))
    for streaming in (original, copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        signals = [torch.randn(batch, 60, 12) for batch in (1, 4)]
        expected = [steps(original, x) for x in signals]
        with ThreadPoolExecutor(2) as threads:
            for found, right in zip(threads.map(partial(steps, streaming), signals), expected, strict=True):
                assert torch.equal(found, right)


@torch.no_grad()
def test_the_input_is_left_alone() -> None:
    """Even where the encoder hands on what it was given."""
    model = classifier(MultiScaleSSM)
    model.encoder = nn.Identity()
    x = torch.randn(1, 20)
    before = x.clone()
    streaming = StreamingClassifier(model)
    streaming.step(x, streaming.initial_state(1))
    assert torch.equal(x, before)


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
        StreamingClassifier(classifier(MultiScaleSSM).train())
