"""What is asked of a server is looked at before anything uses it."""

import numpy as np
import pytest

from data.types import Contract, ContractError, Field, Horizons
from policy.serving.agreement import check_decided, check_types, largest_message
from policy.serving.errors import Code, WireError
from policy.serving.frame import MAX_ARRAYS
from policy.serving.messages import Answer, Ask, Failure
from policy.serving.wire import MAX_COUNT, MAX_SEED, decode, encode
from policy.types import Request
from tests.policy.serving.serving_fakes import CONTRACT, history, peer, serving

HORIZONS = Horizons(obs=2, pred=8, action=4)


def asked(decided, *, delay=2, tick=0):
    return Request(history(), tick, delay=delay, decided=decided)


def test_decided_actions_are_as_many_as_there_are_ticks():
    check_decided(asked(np.zeros((3, 2))), CONTRACT)
    check_decided(asked(np.zeros((1, 2)), delay=0), CONTRACT)
    check_decided(asked(None, delay=MAX_COUNT), CONTRACT)


@pytest.mark.parametrize(
    ("decided", "delay", "found"),
    [
        (np.zeros((2, 2)), 2, r"\(2, 2\), they must be float64 \(3, 2\)"),
        (np.zeros((4, 2)), 2, r"\(4, 2\)"),
        (np.zeros((3, 3)), 2, r"\(3, 3\)"),
        (np.zeros(6), 2, r"\(6,\)"),
        (np.zeros((3, 2, 1)), 2, r"\(3, 2, 1\)"),
        (np.zeros((0, 2)), 0, r"\(0, 2\)"),
        (np.zeros((3, 2)), MAX_COUNT, "one for each of 9007199254740992 ticks"),
        (np.zeros((3, 2), np.float32), 2, "are float32"),
        (np.zeros((3, 2), np.int64), 2, "are int64"),
        (np.full((3, 2), -1e39), 2, "larger than float32 can hold"),
    ],
)
def test_other_decided_actions_are_refused(decided, delay, found):
    with pytest.raises(WireError, match=found) as raised:
        check_decided(asked(decided, delay=delay), CONTRACT)
    assert raised.value.code in (Code.BAD_OBSERVATION, Code.NOT_FINITE)


def test_s1_decided_actions_that_are_not_finite_do_not_leave_the_client():
    with pytest.raises(WireError, match="'action' holds a number that is NaN or infinite"):
        encode(Ask(1, asked(np.full((3, 2), np.nan)), 1.0))


def test_a_client_that_says_wrong_things_of_what_is_decided_loses_a_plan_and_not_the_server():
    with serving() as server, peer(server) as client:
        for number, decided in enumerate((np.zeros((2, 2)), np.full((3, 2), 1e39))):
            client.send(Ask(number, asked(decided, tick=number), 1.0))
            failure = client.receive()
            assert isinstance(failure, Failure)
            assert failure.code in (Code.BAD_OBSERVATION, Code.NOT_FINITE)
            assert failure.id == number
        client.send(Ask(2, asked(np.zeros((3, 2)), tick=2), 10.0))
        answer = client.receive()
        assert isinstance(answer, Answer)
        assert answer.tick0 == 2


def test_the_longest_decided_actions_fit_into_the_largest_message():
    contract = Contract(CONTRACT.observation, CONTRACT.action, control_dt=0.1, horizons=HORIZONS)
    request = Request(
        history(),
        MAX_COUNT,
        epoch=MAX_COUNT,
        seed=MAX_SEED,
        delay=HORIZONS.future,
        decided=np.full((1 + HORIZONS.future, 2), 0.1),
    )
    buffer = encode(Ask(MAX_COUNT, request, 60.0))
    assert len(buffer) <= largest_message(contract)
    assert decode(buffer).request.decided.shape == (9, 2)  # pyright: ignore


@pytest.mark.parametrize(("n", "is_served"), [(MAX_ARRAYS - 1, True), (MAX_ARRAYS, False)])
def test_an_observation_leaves_room_for_what_is_decided(n, is_served):
    field, action = Field(shape=(1,)), Field(shape=(2,))
    fields = {f"field_{i}": field for i in range(n)}
    contract = Contract(fields, action, control_dt=0.1, horizons=HORIZONS)
    steps = {name: np.zeros((2, 1), np.float32) for name in fields}
    buffer = encode(Ask(1, Request(steps, 0, decided=np.zeros((1, 2))), 1.0))
    if is_served:
        check_types(contract)
        assert decode(buffer).request.decided is not None  # pyright: ignore
    else:
        with pytest.raises(ContractError, match=f"has {n} fields, at most {n - 1} are"):
            check_types(contract)
        with pytest.raises(WireError, match="arrays"):
            decode(buffer)
