"""Any program, however it trains: time is neither lost nor counted twice, and counts are exact."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.budget import examples
from tests.fuzz.programs import LEAVES, NAMES, TIMES_NS, Node, decode, encode, play
from tests.fuzz.recipes import KINDS, Recipe, Truth, loop_of

TIMES = st.integers(0, len(TIMES_NS) - 1)
USUAL = st.sampled_from((1, 1, 1, 2, 3))


@pytest.fixture(autouse=True)
def raise_internal_errors(monkeypatch):
    monkeypatch.setenv("TRACEML_TEST_RAISE", "1")


def nodes(children):
    """Nodes whose calls hold some of `children`."""
    holding = st.builds(
        Node,
        st.sampled_from([op for op in NAMES if op not in LEAVES]),
        st.integers(0, 3),
        TIMES,
        TIMES,
        st.lists(children, max_size=3).map(tuple),
    )
    return holding | leaves()


def leaves():
    return st.builds(Node, st.sampled_from(NAMES), st.integers(0, 15), TIMES, TIMES)


def wholes():
    """An iteration as programs have it, perhaps with something odd in it."""
    node = nodes(leaves())
    usual = st.sampled_from(("forward", "backward", "update")).flatmap(
        lambda op: st.builds(Node, st.just(op), st.integers(0, 1), USUAL, USUAL)
    )
    iteration = st.tuples(
        st.builds(Node, st.sampled_from(("fetch", "fetch", "fetch_unknown", "pause"))),
        st.just(Node("forward")),
        st.just(Node("backward")),
        st.builds(Node, st.sampled_from(("update", "update_by_scaler", "update_skipped"))),
    )
    bracketed = iteration.map(lambda calls: (calls[0], Node("bracket", children=calls[1:])))
    part = st.one_of(iteration, bracketed, st.tuples(usual), st.tuples(node))
    return st.lists(part, max_size=12).map(lambda parts: sum(parts, ()))


programs = st.lists(st.recursive(leaves(), nodes, max_leaves=12), max_size=20).map(tuple)


@settings(max_examples=examples(350))
@given(programs, st.booleans(), st.booleans())
def test_any_calls_in_any_order_make_steps_that_add_up(program, with_device, with_audit):
    play(program, with_device, with_audit)


@settings(max_examples=examples(350))
@given(wholes(), st.booleans(), st.booleans())
def test_training_with_odd_calls_in_it_makes_steps_that_add_up(program, with_device, with_audit):
    play(program, with_device, with_audit)


@settings(max_examples=examples(300))
@given(st.binary(max_size=300))
def test_any_bytes_are_a_program(data):
    play(decode(data))


@settings(max_examples=examples(100))
@given(programs)
def test_a_program_survives_being_written_as_bytes(program):
    assert play(decode(encode(program))) == play(program)


RECIPES = st.builds(
    Recipe,
    kind=st.sampled_from(KINDS),
    updates=st.integers(1, 6),
    accumulate=st.integers(1, 3),
    epochs=st.integers(1, 3),
    with_loader=st.booleans(),
    evaluate_every=st.integers(0, 3),
    evaluate_from_loader=st.booleans(),
    copies=st.booleans(),
    logs=st.booleans(),
    saves=st.booleans(),
    compiles=st.booleans(),
    time=st.integers(1, 5),
)


@settings(max_examples=examples(500))
@given(RECIPES, st.booleans(), st.booleans())
def test_a_loop_of_known_shape_is_counted_exactly(recipe, with_device, with_audit):
    program, truth = loop_of(recipe)
    closed = play(program, with_device, with_audit)
    assert (
        Truth(
            steps=len(closed),
            micro_batches=sum(step.micro_batches for step in closed),
            updates=sum(step.updates for step in closed),
            samples=sum(step.samples or 0 for step in closed),
        )
        == truth
    )
