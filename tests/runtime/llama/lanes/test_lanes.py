"""Lanes are exact: whatever shares a batch, logits are those of each sequence alone under llama.cpp's own adapters.

Everything is F32 here, lanes and cache too. What is left is the order of sums, which changes with the size of a batch,
and which GELU's table of F16 values (ggml-cpu/vec.h) makes larger: measured 1e-3 on logits of up to 14, for the base
model alone too; the bound is four times that. Without its adapter a sequence is off by 2 and more.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import llama_cpp.llama_cpp as native
import numpy as np
import pytest

from runtime.errors import DecodeError, InvalidAdapter
from runtime.llama import ggml
from runtime.llama.context import Chunk
from runtime.llama.lanes import nodes
from runtime.llama.lanes.graph import LaneGraph
from runtime.llama.lanes.tensor import Tensor, buffer_type_of, plane_bytes_of
from runtime.llama.lanes.weights import LanePart, lane_parts
from tests.device import is_on_processor
from tests.runtime.llama.conftest import RANK, Bench, Logits, MakeBench, tokens_of

BOUND = 4e-3
LANES: dict[int, dict[str, float]] = {
    0: {},
    1: {"pirate": 1.0},
    2: {"shout": 1.0},
    3: {"tag": -0.5},
    4: {"pirate": 0.5, "shout": 0.75, "tag": 1.25},
}


@pytest.fixture(scope="module", params=["rooms of the graph", "rooms of its own"])
def bench(request: pytest.FixtureRequest, make_bench: MakeBench) -> Iterator[Bench]:
    """Four lanes filled; results in the graph's memory, or in the bank's as on Metal."""
    bench = make_bench(has_own_results=request.param == "rooms of its own")
    for lane in (1, 2, 3, 4):
        bench.fill(lane, **LANES[lane])
    yield bench
    for sequence_id in range(8):
        bench.laned.context.remove(sequence_id)


def differences(bench: Bench, lane: int, tokens: list[int], found: dict[int, Logits]) -> float:
    """How far logits after some tokens are from the sequence alone."""
    expected = bench.alone(tokens, **LANES[lane])
    return max(float(np.abs(expected[position] - logits).max()) for position, logits in found.items())


def run(bench: Bench, lanes: list[int], cuts: list[list[int]]) -> float:
    """Sequences of 24 tokens in these lanes, each batch taking the next cut of each; the largest difference."""
    tokens = [tokens_of(f"{lane} {place}", 24) for place, lane in enumerate(lanes)]
    found: list[dict[int, Logits]] = [{} for _ in lanes]
    done = [0] * len(lanes)
    for cut in cuts:
        members = [place for place, n in enumerate(cut) if n]
        chunks = [
            Chunk(place, tokens[place][done[place] : done[place] + cut[place]], done[place], wants_logits=True)
            for place in members
        ]
        rows = bench.laned.decode(chunks, [lanes[place] for place in members])
        for place, row in zip(members, rows, strict=True):
            done[place] += cut[place]
            found[place][done[place] - 1] = bench.laned.context.logits(row)
    for place in range(len(lanes)):
        bench.laned.context.remove(place)
    return max(differences(bench, lane, tokens[place], found[place]) for place, lane in enumerate(lanes))


@pytest.mark.parametrize(
    "lanes", [[0], [1], [4], [1, 1, 1], [0, 0], [0, 1], [1, 2], [0, 1, 2, 3, 4], [4, 3, 2, 1, 0, 1]]
)
def test_prompts_and_steps_in_any_company(bench: Bench, lanes: list[int]) -> None:
    """A batch of prompts, then steps on one graph that is used again."""
    n = len(lanes)
    assert run(bench, lanes, [[5 + place for place in range(n)], *([[1] * n] * 6)]) < BOUND


def test_prompts_beside_steps(bench: Bench) -> None:
    """Some read their prompt in chunks while others answer; the graph is built anew at each step."""
    cuts = [[4, 0, 0, 0, 0], [1, 6, 0, 3, 0], [1, 1, 7, 5, 0], [1, 1, 1, 1, 9], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert run(bench, [1, 2, 0, 4, 3], cuts) < BOUND


def test_modes_change_on_one_graph(bench: Bench) -> None:
    """Batches of two: base alone, one lane, mixed, base again, without a new shape in between."""
    tokens = {lane: tokens_of(f"modes {lane}", 8) for lane in LANES}
    for lanes in ([0, 0], [1, 1], [1, 2], [0, 0], [2, 3], [3, 3], [0, 4], [4, 4]):
        for place, lane in enumerate(lanes):
            bench.laned.decode([Chunk(place, tokens[lane][:3], 0, wants_logits=True)], [lane])
        chunks = [Chunk(place, [tokens[lane][3]], 3, wants_logits=True) for place, lane in enumerate(lanes)]
        for lane, row in zip(lanes, bench.laned.decode(chunks, lanes), strict=True):
            logits = bench.laned.context.logits(row)
            assert np.abs(bench.alone(tokens[lane][:4], **LANES[lane])[3] - logits).max() < BOUND
        for place in range(2):
            bench.laned.context.remove(place)


def test_another_single_lane_needs_no_walk_through_the_graph(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps under one lane after the other, on one graph: each is right, and the callback is asked once a node."""
    visits: list[int] = []
    look_at = LaneGraph._look_at
    monkeypatch.setattr(LaneGraph, "_look_at", lambda graph, node: (visits.append(node), look_at(graph, node)))
    steps = [[int(place == turn % 3) for place in range(3)] for turn in range(12)]
    assert run(bench, [1, 2, 4], steps) < BOUND
    # A device that keeps a graph has to be told of another lane; so the callback is asked again there.
    assert (len(visits) == len(set(visits))) == is_on_processor()


def test_batches_without_logits(bench: Bench) -> None:
    """Chunks that want none leave no trace but their keys and values."""
    tokens = {lane: tokens_of(f"silent {lane}", 9) for lane in (1, 2)}
    bench.laned.decode([Chunk(lane, tokens[lane][:8], 0, wants_logits=False) for lane in (1, 2)], [1, 2])
    rows = bench.laned.decode([Chunk(lane, tokens[lane][8:], 8, wants_logits=True) for lane in (1, 2)], [1, 2])
    for lane, row in zip((1, 2), rows, strict=True):
        assert np.abs(bench.alone(tokens[lane], **LANES[lane])[8] - bench.laned.context.logits(row)).max() < BOUND
        bench.laned.context.remove(lane)


def test_the_graph_is_built_anew_as_the_cache_grows(bench: Bench) -> None:
    """llama.cpp's graph covers 256 cells at a time; two sequences of 300 tokens cross two borders.

    Long prompts take attention's path for many rows, which rounds to F16: measured 3e-3, the bound is four times that.
    """
    tokens = tokens_of("long", 300)
    for start in range(0, 300, 60):
        chunks = [Chunk(place, tokens[start : start + 60], start, wants_logits=True) for place in range(2)]
        rows = bench.laned.decode(chunks, [1, 2])
    found = [bench.laned.context.logits(row) for row in rows]
    for place in range(2):
        bench.laned.context.remove(place)
        assert np.abs(bench.alone(tokens, **LANES[place + 1])[-1] - found[place]).max() < 3 * BOUND


def test_lanes_are_filled_while_others_run(bench: Bench) -> None:
    """Lane 4 takes one blend after another; a sequence in lane 1 does not notice, one in lane 4 has the last."""
    tokens = tokens_of("steady", 12)
    bench.laned.decode([Chunk(0, tokens[:2], 0, wants_logits=True)], [1])
    expected = bench.alone(tokens, **LANES[1])
    blends = [{"shout": 1.0}, {"tag": 2.0}, {}, {"pirate": -1.0, "tag": 0.5}, {"shout": 0.25}]
    for step, scales in enumerate(blends):
        bench.fill(4, **scales)
        chunks = [Chunk(0, [tokens[2 + step]], 2 + step, wants_logits=True), Chunk(1, tokens[:5], 0, wants_logits=True)]
        steady, other = bench.laned.decode(chunks, [1, 4])
        assert np.abs(expected[2 + step] - bench.laned.context.logits(steady)).max() < BOUND
        assert np.abs(bench.alone(tokens[:5], **scales)[4] - bench.laned.context.logits(other)).max() < BOUND
        bench.laned.context.remove(1)
    bench.laned.context.remove(0)
    bench.fill(4, **LANES[4])


def test_a_failed_batch_leaves_nothing_behind(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed batch of the base, which let the nodes do nothing, does not change the next batch of a lane."""
    steps = [[1]] * 4
    assert run(bench, [1], steps) < BOUND
    decode = native.llama_decode

    def fail(*arguments: object) -> int:
        decode(*arguments)
        return -3

    with monkeypatch.context() as failing:
        failing.setattr(native, "llama_decode", fail)
        with pytest.raises(DecodeError):
            bench.laned.decode([Chunk(0, tokens_of("failed", 1), 0, wants_logits=True)], [0])
    bench.laned.context.remove(0)
    assert run(bench, [1], steps) < BOUND


def test_a_fill_that_ends_halfway_is_cleared_by_the_next(make_bench: MakeBench) -> None:
    """Weights that the file's end kept from being counted are zero again for an adapter that does not change them."""
    bench = make_bench()
    bench.fill(2, **LANES[2])
    members = [(bench.files["pirate"], 1.0)]
    parts = list(lane_parts(members, bench.laned.shapes, RANK, bench.lane_type))

    def cut() -> Iterator[LanePart]:
        yield from parts
        raise InvalidAdapter("the file has become shorter")

    with pytest.raises(InvalidAdapter):
        bench.laned.bank.fill(1, cut())
    bench.laned.bank.fill(1, ())
    assert not any(bench.laned.bank.read(1, part.name).b.any() for part in parts)


def test_memory_of_zeros_is_never_written(make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lane 0 takes none on the processor, nor do rows of A that an adapter does not have, until one had them."""
    n_written: Counter[int] = Counter()
    write = ggml.write

    def count(tensor: int, data: int, offset: int, n_bytes: int) -> None:
        n_written[tensor] += n_bytes
        write(tensor, data, offset, n_bytes)

    bench = make_bench()
    monkeypatch.setattr(ggml, "write", count)
    weights = bench.laned.bank.weights.values()
    # The last leaves 16 rows of the blend before it to be cleared, and with them whatever lies behind.
    for scales, n_rows in (LANES[1], 8), (LANES[4], 24), (LANES[1], RANK):
        n_written.clear()
        bench.fill(1, **scales)
        for weight in weights:
            expected = n_rows if ggml.is_host(buffer_type_of(weight.a)) else RANK
            assert n_written[weight.a] * RANK == expected * plane_bytes_of(weight.a)
    assert all(not bench.laned.bank.read(0, name).a.any() for name in bench.laned.bank.weights)


def test_the_base_beside_lanes_is_the_base_to_the_last_bit(bench: Bench) -> None:
    """A batch without adapters computes what a context without LoRA computes."""
    tokens = tokens_of("base", 20)
    bench.plain.set_adapters([])
    (plain,) = bench.plain.decode([Chunk(0, tokens, 0, wants_logits=True)])
    (laned,) = bench.laned.decode([Chunk(0, tokens, 0, wants_logits=True)], [0])
    assert np.array_equal(bench.plain.logits(plain), bench.laned.context.logits(laned))
    bench.plain.remove(0)
    bench.laned.context.remove(0)


def test_a_sum_that_is_not_in_place_becomes_a_copy(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ``W x`` and the sum have memory of their own each, a base-only batch copies one to the other.

    Here both are the same memory, so that the copy changes nothing and the base stays the base to the last bit, before
    and after a batch in lanes on the same graph.
    """
    copied: list[Tensor] = []
    monkeypatch.setattr(nodes, "is_in_place", lambda out: bool(copied.append(out)))
    tokens = tokens_of("copied", 3)
    bench.plain.set_adapters([])
    (row,) = bench.plain.decode([Chunk(0, tokens, 0, wants_logits=True)])
    expected = bench.plain.logits(row)
    for lane in (0, 2, 0):
        (row,) = bench.laned.decode([Chunk(0, tokens, 0, wants_logits=True)], [lane])
        assert np.array_equal(expected, bench.laned.context.logits(row)) == (lane == 0)
        bench.laned.context.remove(0)
    bench.plain.remove(0)
    assert copied


def test_a_lane_that_does_not_exist_is_refused(bench: Bench) -> None:
    """Ggml reads beyond the bank for such a lane; so it is refused before anything is decoded."""
    for lane in (-1, 5):
        with pytest.raises(ValueError, match="not all among 0 to 4"):
            bench.laned.decode([Chunk(0, [5], 0, wants_logits=True), Chunk(1, [5], 0, wants_logits=True)], [0, lane])


def test_a_walk_that_changes_nothing_fails_the_batch(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch in lanes whose nodes are not met has no lanes in its results, which must not be used."""
    assert run(bench, [1, 2], [[2, 2]]) < BOUND
    monkeypatch.setattr(LaneGraph, "_look_at", lambda *_: None)
    with pytest.raises(DecodeError, match="0 of 14 weights found in the graph"):
        bench.laned.decode([Chunk(0, [5], 0, wants_logits=True)], [3])
    monkeypatch.undo()
    bench.laned.context.remove(0)
    assert run(bench, [1, 2], [[2, 2]]) < BOUND


def test_a_result_is_not_overwritten_before_it_is_read(make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that write one memory, in an order where the second comes before the first is read, fail the batch.

    The node at which that shows computes nothing: cuBLAS ends the process for half rewritten ones.
    """
    write, visit = LaneGraph._write, LaneGraph._visit
    failed_ops = []

    def note(graph: LaneGraph, address: int, is_asking: bool, user_data: object) -> bool:
        goes_on = visit(graph, address, is_asking, user_data)
        if graph._failure and address in graph._partial:
            failed_ops.append(Tensor.from_address(address).op)
        return goes_on

    with monkeypatch.context() as faulty:
        # One memory for all, and no reader that comes in time.
        faulty.setattr(LaneGraph, "_write", lambda graph, _result, name: write(graph, 1, name))
        faulty.setattr(LaneGraph, "_visit", note)
        bench = make_bench()
        with pytest.raises(DecodeError, match=r"would overwrite the result of blk\.0\.attn_q\.weight before"):
            bench.laned.decode([Chunk(0, [5], 0, wants_logits=True)], [0])
    assert set(failed_ops) == {bench.laned._graph._ops.none}
    bench.laned.context.remove(0)
    bench.laned.decode([Chunk(0, [5], 0, wants_logits=True)], [0])


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("supports_op", r"(CPU|RPC\S+) was given a node that it cannot compute as MUL_MAT_ID"),
        ("supports_buffer_type", r"(CPU|RPC\S+) computes a node whose lanes are in memory it cannot read"),
    ],
)
def test_a_backend_that_cannot_compute_a_node_fails_the_batch(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, question: str, words: str
) -> None:
    """The node is not computed at all: some backends end the process for an operation they do not know."""
    bench = make_bench()
    for lane in (1, 2):
        bench.fill(lane, **LANES[lane])
    chunks = [Chunk(place, [5], 0, wants_logits=True) for place in range(2)]
    with monkeypatch.context() as faulty:
        faulty.setattr(ggml, question, lambda *_: False)
        with pytest.raises(DecodeError, match=words):
            bench.laned.decode(chunks, [1, 2])


def test_random_batches(bench: Bench) -> None:
    """Forty batches of random lanes and lengths over eight sequences."""
    rng = random.Random(3)
    for _ in range(5):
        lanes = [rng.choice(list(LANES)) for _ in range(8)]
        cuts = [[rng.choice((0, 1, 1, 2, 3)) for _ in lanes] for _ in range(8)]
        assert run(bench, lanes, [*cuts, [1] * 8]) < BOUND


@pytest.mark.parametrize(("lane_type", "bound"), [("f16", 0.02), ("q8_0", 0.15)])
def test_smaller_lanes_are_as_good_as_their_type(make_bench: MakeBench, lane_type: str, bound: float) -> None:
    """Weights of 11 and 8 bits: measured 0.002 and 0.03, where adapters change logits by 2.8."""
    bench = make_bench(lane_type)
    for lane in (1, 2, 3, 4):
        bench.fill(lane, **LANES[lane])
    assert run(bench, [0, 1, 2, 3, 4], [[5] * 5, *([[1] * 5] * 4)]) < bound
