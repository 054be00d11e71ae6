"""Each fault that spoils training is found where it was planted, and nowhere in a sound recording.

The recording is of a point that a scripted expert brings to a place, seen by a camera.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from data.checks import duplicates, reading
from data.doctor import Finding, Look, examine_store
from data.store import EpisodeStore
from data.types import Contract, Field

N, DT, SIDE = 14, 0.1, 12
CONTRACT = Contract(
    {
        "place": Field((2,), unit="m"),
        "camera": Field((SIDE, SIDE, 3), dtype="uint8"),
    },
    Field((3,), unit=("m", "m", "1"), discrete=(2,), low=(-1, -1, 0), high=(1, 1, 1)),
    DT,
)
Episode = dict[str, np.ndarray]


def seen(places: np.ndarray) -> np.ndarray:
    """[L, SIDE, SIDE, 3] a bright spot where the point is."""
    axis = np.linspace(-1, 1, SIDE)
    off = (axis[:, None] - places[:, 1, None, None]) ** 2
    off = off + (axis[None, :] - places[:, 0, None, None]) ** 2
    spot = 255 * np.exp(-off / 0.1)
    return np.repeat(spot[..., None], 3, axis=3).astype(np.uint8)


def expert(seed: int, length: int = 60) -> Episode:
    """An episode: the point follows the action, which goes from one place to another and back."""
    rng = np.random.default_rng(seed)
    goals = rng.uniform(-0.8, 0.8, (4, 2))
    place, target = rng.uniform(-0.8, 0.8, 2), None
    places, actions = [], []
    target = place.copy()
    for step in range(length):
        goal = goals[step * 4 // length]
        target = target + np.clip(goal - target, -0.04, 0.04)
        places.append(place.copy())
        actions.append([*target, float(step > length // 2)])
        place = place + 0.5 * (target - place)
    where = np.array(places)
    return {"place": where, "action": np.array(actions), "camera": seen(where)}


def sound(n: int = N) -> list[Episode]:
    return [expert(seed, 50 + seed % 5) for seed in range(n)]


def write(
    path: Path,
    episodes: list[Episode],
    contract: Contract = CONTRACT,
    *,
    metadata: Callable[[int], dict] = lambda i: {"seed": i, "task": "bring it"},
) -> Path:
    """A store of our own, episode by episode."""
    with EpisodeStore.create(path, contract) as store, store.together():
        for index, episode in enumerate(episodes):
            store.append({name: episode[name] for name in contract.fields}, **metadata(index))
    return path


def write_at_once(path: Path, episodes: list[Episode], contract: Contract) -> Path:
    """A store without a contract of its own, which takes a tenth of the time."""
    group = zarr.open_group(path, mode="w", zarr_format=2)
    for name in contract.fields:
        group.create_array(f"data/{name}", data=np.concatenate([e[name] for e in episodes]))
    ends = np.cumsum([len(each["action"]) for each in episodes])
    group.create_array("meta/episode_ends", data=ends)
    return path


@pytest.fixture
def found(tmp_path: Path):
    """What is found in a store of the given episodes."""
    n = 0

    def look(
        episodes: list[Episode],
        contract: Contract = CONTRACT,
        *,
        metadata: Callable[[int], dict] | None = None,
        look: Look | None = None,
    ) -> list[Finding]:
        nonlocal n
        n += 1
        path = tmp_path / f"{n}.zarr"
        if metadata is None:
            return examine_store(write_at_once(path, episodes, contract), contract, look=look)
        return examine_store(write(path, episodes, contract, metadata=metadata), look=look)

    return look


def only(findings: list[Finding], code: str) -> Finding:
    assert [(each.code, each.severity) for each in findings] == [(code, "warning")], findings
    return findings[0]


def with_field(name: str, field: Field) -> Contract:
    return replace(CONTRACT, observation={**CONTRACT.observation, name: field})


def test_a_sound_recording_has_no_findings(found):
    assert found(sound()) == []
    assert found([{**each, "camera": each["camera"] // 2 + 40} for each in sound(3)]) == []


def test_a_finding_is_json_with_all_its_episodes(found):
    episodes = [expert(seed, 4 if seed < 12 else 60) for seed in range(30)]
    short = next(each for each in found(episodes) if each.code == "S008")
    assert short.message.endswith("0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more")
    told = json.loads(json.dumps(short.to_json()))
    assert (told["episodes"], told["n_episodes"]) == (list(range(12)), 12)
    assert "do=hide 'episodes=[0-11]'" in told["fix"]


def test_lengths_unlike_the_others_of_the_task(found):
    odd = [*sound(), expert(50, 200), expert(51, 12)]
    finding = only([each for each in found(odd) if each.code != "S025"], "S013")
    assert finding.episodes == (N, N + 1)
    assert "12..200 steps" in finding.message
    # Another task may take another time.
    tasks = [*sound(), *(expert(seed, 200) for seed in range(50, 50 + N))]
    told = found(tasks, metadata=lambda i: {"task": "far" if i >= N else "near"})
    assert "S013" not in [each.code for each in told]
    assert "S013" not in [each.code for each in found([*sound(6), expert(50, 200)])]


def stamped(episode: Episode, periods: np.ndarray) -> Episode:
    stamps = 1e9 + np.concatenate([[0.0], np.cumsum(periods[: len(episode["action"]) - 1])])
    return {**episode, "timestamp": stamps[:, None]}


TIMED = with_field("timestamp", Field((1,), dtype="float64", unit="s"))


def test_time_that_is_even_has_no_findings(found):
    rng = np.random.default_rng(0)
    assert found([stamped(e, DT + 0.005 * rng.normal(size=60)) for e in sound()], TIMED) == []


def test_gaps_jitter_and_time_that_stands_still(found):
    rng = np.random.default_rng(0)
    gap = np.full(60, DT)
    gap[20] = 0.4
    episodes = [stamped(each, np.full(60, DT)) for each in sound()]
    finding = only(found([*episodes[:-1], stamped(sound()[-1], gap)], TIMED), "S015")
    assert finding.episodes == (N - 1,)
    assert "the longest 0.4 s in episode 13" in finding.message
    uneven = DT * (1 + 0.4 * (-1.0) ** np.arange(60))
    finding = only(found([episodes[0], stamped(sound()[1], uneven), *episodes[2:]], TIMED), "S016")
    assert finding.episodes == (1,)
    assert "up to 40 %" in finding.message
    slow = [stamped(each, np.full(60, 0.12) + 0.001 * rng.normal(size=60)) for each in sound()]
    assert "0.12 s apart, control_dt says 0.1 s" in only(found(slow, TIMED), "S016").message
    # float32 cannot hold so many seconds: neighbours become equal.
    coarse = with_field("timestamp", Field((1,), unit="s"))
    assert only(found(episodes, coarse), "S014").episodes == tuple(range(N))


def test_time_stamps_in_metadata_and_in_other_units(found):
    def told(index: int) -> dict:
        stamps = DT * np.arange(50 + index % 5)
        stamps[30:] += 1.0 if index == 3 else 0.0
        return {"timestamps": stamps.tolist()}

    assert only(found(sound(), metadata=told), "S015").episodes == (3,)
    assert found(sound(), metadata=lambda i: {"timestamps": [None, 1e400, "x"]}) == []
    assert found(sound(), metadata=lambda i: {"timestamps": [float("nan")] * (50 + i % 5)}) == []
    contract = with_field("timestamp", Field((1,), dtype="int64", unit="ms"))
    even = [{**e, "timestamp": 100 * np.arange(len(e["action"]))[:, None]} for e in sound()]
    assert found(even, contract) == []
    finding = only(found(even, with_field("timestamp", Field((1,), "int64", unit="h"))), "S016")
    assert "unit 'h'" in finding.message


def test_an_element_that_is_cut_off(found):
    cut = [{**each, "place": np.minimum(each["place"], 0.1)} for each in sound()]
    findings = [each for each in found(cut) if each.code == "S017"]
    assert {each.message.split(" in ")[0] for each in findings} == {
        f"place: element {element} sits at its highest value 0.1" for element in (0, 1)
    }


def test_numbers_beyond_the_limits_of_the_contract(found):
    episodes = sound()
    contract = replace(CONTRACT, action=replace(CONTRACT.action, high=(0.5, 1.0, 1.0)))
    beyond = [i for i, e in enumerate(episodes) if e["action"][:, 0].max() > 0.501]
    finding = only(found(episodes, contract), "S018")
    assert finding.episodes == tuple(beyond)
    farthest = max(e["action"][:, 0].max() for e in episodes)
    assert f"the farthest is {farthest:g} of element 0, limits -1..0.5" in finding.message


def test_actions_that_jump(found):
    episodes = sound()
    spike = episodes[4]["action"]
    spike[20, 0] += 1.2 if spike[20, 0] < 0 else -1.2
    finding = only(
        found(episodes, replace(CONTRACT, action=replace(CONTRACT.action, low=None, high=None))),
        "S019",
    )
    assert finding.episodes == (4,)
    assert "and back, at step 2" in finding.message  # 20 or 21: there, or back again
    # In every episode as well: nothing that a task asks for goes there and back within two steps.
    for each in episodes:
        each["action"][30, 1] += 1.2 if each["action"][30, 1] < 0 else -1.2
    assert {each.code for each in found(episodes)} >= {"S019"}


def test_a_state_that_jumps_for_good_is_two_episodes_in_one(found):
    episodes = sound()
    a, b = expert(70, 30), expert(71, 30)
    joined = {name: np.concatenate([a[name], b[name]]) for name in a}
    joined["place"][30:, 0] = np.where(joined["place"][29, 0] > 0, -0.7, 0.7) + 0.01 * np.arange(30)
    finding = next(e for e in found([*episodes, joined]) if e.code == "S019")
    assert finding.episodes == (N,)
    assert f"at step 30 of episode {N}" in finding.message
    # What all episodes do is what the task asks for, such as a gripper that closes.
    for each in episodes:
        each["place"][25:, 1] += 1.5
    assert "S019" not in [each.code for each in found(episodes)]


def angled(contract_angles: tuple[int, ...]) -> tuple[Contract, list[Episode]]:
    contract = with_field("angle", Field((1,), unit="rad", angles=contract_angles))
    turning = [
        {**e, "angle": ((0.2 * np.arange(len(e["action"])) + i) % (2 * np.pi) - np.pi)[:, None]}
        for i, e in enumerate(sound())
    ]
    return contract, turning


def test_an_angle_that_wraps_round_has_to_be_told(found):
    contract, turning = angled(())
    finding = only(found(turning, contract), "S028")
    assert "angle: angle 0 wraps round" in finding.message
    contract, turning = angled((0,))
    assert found(turning, contract) == []


def test_copies_and_what_begins_as_another(found):
    episodes = sound()
    copy = only(found([*episodes, episodes[2]]), "S020")
    assert copy.episodes == (N,)
    assert f"{N} is 2" in copy.message
    part = {name: values[:40] for name, values in episodes[2].items()}
    begun = only(found([*episodes, part]), "S021")
    assert begun.episodes == (N,)
    assert f"{N} begins as 2" in begun.message
    # A common begin is no copy: the expert may wait, and two ways may part after some steps.
    parted = {name: values.copy() for name, values in episodes[2].items()}
    parted["place"][20:] += 0.01
    parted["action"][20:, :2] += 0.01
    assert found([*episodes, parted]) == []


@pytest.mark.parametrize("size", [0, 1e-5])
def test_copies_with_a_little_noise(found, size):
    rng = np.random.default_rng(0)
    episodes = [*sound(), expert(4, 54), expert(2, 52), expert(30)]
    for copy in episodes[N : N + 2]:
        for name in ("place", "action"):
            copy[name][:, :2] += size * rng.uniform(-1, 1, copy[name][:, :2].shape)
    copies = only(found(episodes), "S020")
    assert copies.episodes == (N, N + 1)
    assert (f"{N} is 4, {N + 1} is 2" in copies.message, "noise" in copies.message) == (
        True,
        size > 0,
    )
    parted = found(episodes, look=held_out(2))
    assert {each.code for each in parted} == {"S020", "S022"}


def test_what_is_done_again_is_no_copy(found):
    """The same course with the noise of a robot, a hundredth of the range."""
    rng = np.random.default_rng(0)
    again = expert(4, 54)
    for name in ("place", "action"):
        again[name][:, :2] += 0.01 * rng.uniform(-1, 1, again[name][:, :2].shape)
    assert [each for each in found([*sound(), again]) if each.code == "S020"] == []


def held_out(*episodes: int) -> Look:
    return Look(is_held_out=lambda n: np.isin(np.arange(n), episodes))


def test_copies_on_both_sides_of_the_split_of_training(found):
    episodes = [*sound(), expert(2, 52)]
    assert {e.code for e in found(episodes, look=held_out(2))} == {"S020", "S022"}
    assert {e.code for e in found(episodes, look=held_out(N))} == {"S020", "S022"}
    assert {e.code for e in found(episodes, look=held_out(5))} == {"S020"}
    assert {e.code for e in found(episodes, look=held_out(2, N))} == {"S020"}


def test_copies_on_both_sides_of_a_labelled_split(found):
    episodes = [*sound(), sound()[2]]
    parted = found(episodes, metadata=lambda i: {"split": "val" if i == N else "train"})
    assert {e.code for e in parted} == {"S020", "S022"}
    same = found(episodes, metadata=lambda i: {"split": "val"}, look=held_out(2))
    assert {e.code for e in same} == {"S020"}


def test_episodes_of_another_store(tmp_path):
    def against(episodes: list[Episode], name: str, first_seed: int) -> list[Finding]:
        other = write(
            tmp_path / name,
            episodes,
            metadata=lambda i: {"seed": first_seed + i, "task": "bring it"},
        )
        mine = tmp_path / "mine.zarr"
        return examine_store(mine, look=Look(against=[EpisodeStore.open(other)]))

    write(tmp_path / "mine.zarr", sound())
    fresh = [expert(seed) for seed in range(100, 110)]
    assert against(fresh, "fresh.zarr", 100) == []
    copied = only(against([*fresh, sound()[7]], "copied.zarr", 100), "S022")
    assert (copied.episodes, "7 as 10 there" in copied.message) == ((7,), True)
    seeds = only(against(fresh, "seeds.zarr", 10), "S022")
    assert seeds.episodes == (10, 11, 12, 13)
    starts = [{k: v.copy() for k, v in each.items()} for each in fresh]
    starts[3]["place"][0], starts[3]["camera"][0] = sound()[5]["place"][0], sound()[5]["camera"][0]
    assert only(against(starts, "starts.zarr", 100), "S022").episodes == (5,)
    # Where every episode begins at home, an equal start means nothing.
    for each in starts:
        each["place"][0] = sound()[5]["place"][0]
    assert against(starts, "home.zarr", 100) == []


@pytest.mark.parametrize("lag", [-2, -1, 1, 3])
def test_pictures_that_are_late_or_early(found, lag):
    shifted = [
        {
            **each,
            "camera": each["camera"][
                np.clip(np.arange(len(each["camera"])) - lag, 0, None) % len(each["camera"])
            ],
        }
        for each in (expert(seed) for seed in range(30))
    ]
    finding = only([each for each in found(shifted) if each.code != "S024"], "S023")
    late = "camera lags" if lag > 0 else "the state lags"
    assert finding.message.startswith(f"{late} {abs(lag)} step")


def test_pictures_of_something_else_have_no_lag(found):
    rng = np.random.default_rng(0)
    other = [
        {**e, "camera": rng.integers(0, 256, e["camera"].shape).astype(np.uint8)} for e in sound()
    ]
    assert found(other) == []


def test_pictures_that_stand_still(found):
    episodes = sound()
    episodes[6]["camera"][10:] = episodes[6]["camera"][10]
    assert only(found(episodes), "S024").episodes == (6,)
    black = [{**each, "camera": np.zeros_like(each["camera"])} for each in sound()]
    assert "never changes, in any episode" in only(found(black), "S024").message
    assert found(black, look=Look(pictures=False)) == []


def test_long_episodes_of_pictures_are_read_in_parts(found, monkeypatch):
    episodes = sound()
    episodes[6]["camera"][10:40] = episodes[6]["camera"][10]
    monkeypatch.setattr(reading, "BLOCK_BYTES", 7 * SIDE * SIDE * 3)
    assert only(found(episodes), "S024").episodes == (6,)
    assert found(sound()) == []


def test_idle_stretches(found):
    def waiting(episode: Episode, start: int, steps: int) -> Episode:
        rows = np.r_[
            np.arange(start), np.full(steps, start), np.arange(start, len(episode["action"]))
        ]
        return {name: values[rows] for name, values in episode.items()}

    episodes = sound()
    finding = only(found([*episodes[:-1], waiting(episodes[-1], 30, 40)]), "S025")
    assert finding.episodes == (N - 1,)
    assert "the longest lasts 4 s from step 30 of episode 13" in finding.message
    assert found([*episodes[:-1], waiting(episodes[-1], 30, 12)]) == []


@pytest.mark.parametrize(
    ("unit", "factor", "guess"),
    [
        ("rad", 180 / np.pi, "degrees"),
        ("m", 1000.0, "millimetres"),
        ("px", 1.0, "scaled"),
        ("mm", 0.5, "metres"),
        ("deg", 1.0, "radians"),
    ],
)
def test_units_that_look_wrong(found, unit, factor, guess):
    contract = replace(
        CONTRACT, observation={**CONTRACT.observation, "place": Field((2,), unit=unit)}
    )
    wrong = [{**each, "place": factor * each["place"]} for each in sound()]
    finding = only(found(wrong, contract), "S026")
    assert guess in finding.message
    right = {"rad": 1.0, "m": 1.0, "px": 250.0, "mm": 300.0, "deg": 60.0}[unit]
    assert found([{**each, "place": right * each["place"]} for each in sound()], contract) == []


def test_discrete_elements_that_are_not(found):
    rng = np.random.default_rng(0)
    episodes = sound()
    for each in episodes:
        each["action"][:, 2] = np.clip(
            each["action"][:, 2] + 0.1 * rng.normal(size=len(each["action"])), 0, 1
        )
    assert "element 2 is discrete" in only(found(episodes), "S027").message


def quaternions(length: int, seed: int) -> np.ndarray:
    """[L, 4] smooth unit quaternions."""
    angle = 0.3 * np.sin(0.1 * np.arange(length) + seed)
    zero = np.zeros(length)
    return np.stack([np.cos(angle), np.sin(angle), zero, zero + 0.0], axis=1)


def turned(kind: str, rotation: Callable[[int, int], np.ndarray]) -> tuple[Contract, list[Episode]]:
    size = rotation(2, 0).shape[1]
    contract = with_field("pose", Field((3 + size,), rotation=kind))
    episodes = []
    for index, each in enumerate(sound()):
        length = len(each["action"])
        at = np.concatenate([each["place"], each["place"][:, :1]], axis=1)
        episodes.append({**each, "pose": np.concatenate([at, rotation(length, index)], axis=1)})
    return contract, episodes


def serious(findings: list[Finding]) -> list[Finding]:
    """Without the elements that a rotation about one axis leaves alone."""
    return [each for each in findings if each.code != "S009"]


def test_quaternions_have_length_1_and_keep_their_sign(found):
    contract, episodes = turned("quaternion_wxyz", quaternions)
    assert serious(found(episodes, contract)) == []
    episodes[3]["pose"][20:, 3:] *= -1
    finding = only(serious(found(episodes, contract)), "S028")
    assert (finding.episodes, "flips its sign 1 time between" in finding.message) == ((3,), True)
    contract, episodes = turned("quaternion_wxyz", quaternions)
    episodes[5]["pose"][:, 3:] *= 1.2
    finding = only(serious(found(episodes, contract)), "S028")
    assert (finding.episodes, "0.2 away" in finding.message) == ((5,), True)


@pytest.mark.parametrize("units", [None, ["1"] * 4 + ["m"] * 3])
def test_a_quaternion_may_be_before_the_position(found, units):
    contract, episodes = turned("quaternion_wxyz", quaternions)
    if units:
        pose = replace(contract.observation["pose"], unit=units)
        contract = replace(contract, observation={**contract.observation, "pose": pose})
    episodes = [{**e, "pose": np.roll(e["pose"], 4, axis=1)} for e in episodes]
    assert serious(found(episodes, contract)) == []
    episodes[5]["pose"][:, :4] *= 1.2
    assert only(serious(found(episodes, contract)), "S028").episodes == (5,)
    episodes[5]["pose"][:, :4] /= 1.2
    episodes[3]["pose"][20:, :4] *= -1
    assert "flips its sign" in only(serious(found(episodes, contract)), "S028").message


@pytest.mark.parametrize(("kind", "size"), [("rotation_6d", 6), ("matrix", 9), ("axis_angle", 3)])
def test_other_rotations_are_rotations(found, kind, size):
    def about_z(length: int, seed: int) -> np.ndarray:
        angle = 0.3 * np.sin(0.1 * np.arange(length) + seed)
        if kind == "axis_angle":
            return np.stack([0 * angle, 0 * angle, angle], axis=1)
        cos, sin, zero = np.cos(angle), np.sin(angle), 0 * angle
        columns = [cos, sin, zero, -sin, cos, zero, zero, zero, zero + 1]
        return np.stack(columns[:size], axis=1)

    contract, episodes = turned(kind, about_z)
    assert serious(found(episodes, contract)) == []
    episodes[5]["pose"][:, 3:] *= 1.2 if kind != "axis_angle" else 30
    assert only(serious(found(episodes, contract)), "S028").episodes == (5,)


def test_episodes_whose_action_does_nothing(found):
    episodes = sound()
    episodes[3]["place"][:] = episodes[3]["place"][0]
    episodes[3]["camera"][:] = episodes[3]["camera"][0]
    finding = only(found(episodes), "S029")
    assert finding.episodes == (3,)
    assert "stands still" in finding.message
    episodes = sound()
    other = expert(99, 60)["action"][: len(episodes[8]["action"])]
    episodes[8]["action"] = other
    finding = only(found(episodes), "S029")
    assert finding.episodes == (8,)
    assert "does not tell how the state moves" in finding.message


def test_a_store_of_pictures_and_actions_alone_is_examined(found):
    contract = replace(CONTRACT, observation={"camera": CONTRACT.observation["camera"]})
    assert found(sound(), contract) == []


def test_a_damaged_episode_does_not_hide_the_others(tmp_path):
    episodes = [*sound(), sound()[2]]
    episodes[1]["place"][10] = np.nan
    findings = examine_store(write_at_once(tmp_path / "s.zarr", episodes, CONTRACT), CONTRACT)
    assert [each.code for each in findings] == ["S006", "S020"]
    assert [each.episodes for each in findings] == [(1,), (N,)]


def test_progress_is_told_up_to_the_end(tmp_path):
    path, told = write(tmp_path / "s.zarr", sound(3)), []
    examine_store(path, progress=lambda done, total: told.append((done, total)))
    n_steps = sum(len(each["action"]) for each in sound(3))
    assert told[-1] == (2 * n_steps, 2 * n_steps)
    assert told == sorted(told)


def test_many_pairs_that_begin_alike_are_not_all_compared(found, monkeypatch):
    monkeypatch.setattr(duplicates, "MOST_PAIRS", 1)
    part = [{name: values[:40] for name, values in sound()[2].items()} for _ in range(2)]
    part[1] = {name: values[:45] for name, values in sound()[2].items()}
    assert only(found([*sound(), *part]), "S021").episodes == (N,)


ODD_FIELDS = {
    "no dimension": Field(()),
    "two dimensions": Field((2, 3)),
    "no elements": Field((0,)),
    "whole numbers": Field((2,), "int64"),
    "true or false": Field((2,), "bool"),
    "huge": Field((2,), "float64"),
    "a quaternion of zeros": Field((4,), rotation="quaternion_wxyz"),
    "an unknown rotation": Field((5,), rotation="other"),
    "three times": Field((3,)),
}


def odd_values(rng: np.random.Generator, field: Field, length: int, size: float) -> np.ndarray:
    values = size * rng.normal(size=(length, *field.shape))
    return values > 0 if field.dtype == "bool" else values.astype(field.dtype)


@pytest.mark.parametrize("name", ODD_FIELDS)
@pytest.mark.parametrize("length", [1, 2, 20])
@pytest.mark.filterwarnings("error")
def test_odd_fields_and_short_episodes_are_examined(found, name, length):
    rng, field = np.random.default_rng(0), ODD_FIELDS[name]
    field_name = "timestamp" if name == "three times" else "odd"
    size = {"whole numbers": 2.0**60, "huge": 1e300, "a quaternion of zeros": 0.0}.get(name, 1.0)
    episodes = [
        {
            field_name: odd_values(rng, field, length, size),
            "action": rng.normal(size=(length, 1)),
        }
        for _ in range(6)
    ]
    codes = {each.code for each in found(episodes, Contract({field_name: field}, Field((1,)), 0.1))}
    allowed = {"S008"} if length < 8 else set()
    allowed |= {"S009", "S020", "S028", "S029"} if name == "a quaternion of zeros" else set()
    assert codes <= allowed
    assert ("S028" in codes) == (name == "a quaternion of zeros")


def test_metadata_that_is_no_object_is_passed_over(tmp_path):
    path = write_at_once(tmp_path / "s.zarr", sound(3), CONTRACT)
    told: list = [3, ["x"], {"seed": 1}]
    reader = reading.Reader(EpisodeStore.open(path, contract=CONTRACT), told)
    assert [each.metadata for each in reader.episodes()] == [{}, {}, {"seed": 1}]
