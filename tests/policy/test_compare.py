"""Two evaluations on the same starts, counted by hand."""

import json
import math

import pytest

from policy.compare import Comparison, load_results, run
from policy.entry import compose_config


def results(successes, *, seed=0, env: object = "pillar", **more):
    """As of `cadence evaluate`; the score of a success is 1, that of a failure 0.5."""
    episodes = [
        {"seed": seed + i, "success": success, "score": 1.0 if success else 0.5, "total": 0.0}
        for i, success in enumerate(successes)
    ]
    rate = sum(successes) / len(successes)
    return {"env": env, "episodes": episodes, "success": rate, "score": 0.0, **more}


def returns(totals, **more):
    """Of a task that nobody can succeed in."""
    told = results([False] * len(totals), **more)
    for episode, total in zip(told["episodes"], totals, strict=True):
        episode["total"] = total
    return told


def write(folder, contents):
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(contents))
    return folder


A = [True, True, False, False, False, False, True]
B = [True, False, True, True, True, True, True]


def test_pairs_are_counted():
    found = Comparison.of(results(A), results(B))
    assert (found.n, found.both, found.only_a, found.only_b) == (7, 2, 1, 4)
    assert found.p_value == pytest.approx(2 * (1 + 5) / 2**5)
    assert found.success[0] == pytest.approx(3 / 7)
    assert found.score[0] == pytest.approx(1.5 / 7)
    assert found.success[1] < 3 / 7 < found.success[2]


def test_the_order_of_the_episodes_does_not_matter():
    shuffled = results(B)
    shuffled["episodes"] = shuffled["episodes"][::-1]
    assert Comparison.of(results(A), shuffled) == Comparison.of(results(A), results(B))


def test_the_other_way_round_the_signs_are():
    there, back = Comparison.of(results(A), results(B)), Comparison.of(results(B), results(A))
    assert there.p_value == back.p_value
    assert there.success[0] == -back.success[0]
    assert (there.only_a, there.only_b) == (back.only_b, back.only_a)


def test_starts_of_one_seed_in_two_tasks_are_two():
    both = [{**e, "task": task} for task in ("left", "right") for e in results(A)["episodes"]]
    found = Comparison.of({**results(A), "episodes": both}, {**results(A), "episodes": both})
    assert found.n == 14


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (results(B, seed=3), "a has 7 starts and b 7, of which 4 are the same"),
        (results(B[:5]), "a has 7 starts and b 5, .* same: evaluate both with the same seed"),
        (results(B[:5], complete=False), "same: b was interrupted, evaluate it again"),
        (results(B, env="push_t"), "env is 'pillar' in a, 'push_t' in b: evaluate both"),
    ],
)
def test_what_cannot_be_paired_is_refused(other, message):
    with pytest.raises(ValueError, match=message):
        Comparison.of(results(A), other)


def test_of_interrupted_evaluations_the_refusal_names_both():
    both = results(A[:3], complete=False), results(B[:5], complete=False)
    with pytest.raises(ValueError, match="same: a and b were interrupted, evaluate them again"):
        Comparison.of(*both)


def test_of_two_environments_only_what_differs_is_named():
    a = {"_target_": "make", "id": "Hopper-v5", "inner": {"size": 3, "goal": 1}, "old": None}
    b = {"_target_": "make", "id": "Walker2d-v5", "inner": {"size": 4, "goal": 1}}
    with pytest.raises(ValueError, match="environments differ") as error:
        Comparison.of(results(A, env=a), results(B, env=b))
    assert "env.id is 'Hopper-v5' in a, 'Walker2d-v5' in b" in str(error.value)
    assert "env.inner.size is 3 in a, 4 in b" in str(error.value)
    assert "env.old is only in a, None" in str(error.value)
    assert "make" not in str(error.value).replace("evaluate", "")
    assert "goal" not in str(error.value)


def test_returns_are_paired_and_ties_left_out():
    a, b = returns([1.0, 2.0, 3.0, 4.0, 5.0]), returns([1.0, 12.0, 13.0, 1.0, 15.0])
    found = Comparison.of(a, b, measure="return")
    assert found.wins == (1, 3)
    assert found.p_value == pytest.approx(2 * (1 + 4) / 2**4)
    assert found.total is not None
    mean, low, high = found.total
    assert mean == pytest.approx((0 + 10 + 10 - 3 + 10) / 5)
    assert low < mean < high
    text = found.text()
    assert "5 starts: the return of a is higher in 1, that of b in 3, equal in 1" in text
    assert "b less a: return +5.400 [" in text
    assert "sign test of 1 against 3: p = 0.62" in text


def test_where_nobody_succeeds_the_text_points_to_returns():
    text = Comparison.of(returns([1.0, 2.0]), returns([3.0, 4.0])).text()
    assert "neither succeeds in any" in text
    assert "measure=return" in text
    assert "sign test" not in text


def test_another_measure_is_refused():
    with pytest.raises(ValueError, match="measure is 'score', choose success or return"):
        Comparison.of(results(A), results(B), measure="score")


def test_a_chance_beyond_floats_is_not_printed_as_none():
    n = 1100
    found = Comparison.of(results([False] * n), results([True] * n))
    assert found.text().endswith("sign test of 0 against 1100: p < 1e-300")


def test_it_reads_folders_and_says_what_it_found(tmp_path, capsys):
    for name, successes in {"a": A, "b": B}.items():
        write(tmp_path / name, {**results(successes, complete=name == "a"), "success": 0.123})
    run(compose_config("compare", [f"a={tmp_path / 'a'}", f"b={tmp_path / 'b' / 'results.json'}"]))
    out = capsys.readouterr().out
    assert "only a in 1, only b in 4" in out
    assert "p = 0.38" in out
    assert "b was interrupted" in out
    assert f"a: success {3 / 7:.3f}, score {5 / 7:.3f}, " in out  # of the pairs
    assert "0.123" not in out


def test_returns_are_compared_as_configured(tmp_path, capsys):
    a, b = write(tmp_path / "a", returns([1.0, 2.0])), write(tmp_path / "b", returns([3.0, 5.0]))
    run(compose_config("compare", [f"a={a}", f"b={b}", "measure=return"]))
    out = capsys.readouterr().out
    assert "a: return 1.500, success 0.000, score 0.500, " in out
    assert "b less a: return +2.500 [" in out


@pytest.mark.parametrize("text", ["{", "[]", '{"n": 1}'])
def test_other_files_are_refused(text, tmp_path):
    file = tmp_path / "results.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"results\.json is no"):
        load_results(tmp_path)
    with pytest.raises(ValueError, match=r"holds no results\.json"):
        load_results(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1.5}, r"episodes\[2\]\.seed is 1\.5, it must be a whole number"),
        ({"seed": True}, r"episodes\[2\]\.seed is True, it must be a whole number"),
        ({"seed": 0}, r"episodes\[2\] has seed 0, as episodes\[0\]"),
        ({"success": "no"}, r"episodes\[2\]\.success is 'no', it must be true or false"),
        ({"success": 1}, r"episodes\[2\]\.success is 1, it must be true or false"),
        ({"score": None}, r"episodes\[2\]\.score is None, it must be a finite number"),
        ({"score": math.nan}, r"episodes\[2\]\.score is nan, it must be a finite number"),
        ({"score": 10**400}, r"episodes\[2\]\.score is 10+, it must be a finite number"),
        ({"total": math.inf}, r"episodes\[2\]\.total is inf, it must be a finite number"),
        ({"total": "12"}, r"episodes\[2\]\.total is '12', it must be a finite number"),
    ],
)
def test_an_episode_that_cannot_be_compared_is_named(change, message, tmp_path):
    contents = results(A)
    contents["episodes"][2].update(change)
    with pytest.raises(ValueError, match=r"results\.json: " + message) as error:
        load_results(write(tmp_path / "a", contents))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["seed", "success", "score"])
def test_an_episode_that_lacks_something_is_named(key, tmp_path):
    contents = results(A)
    del contents["episodes"][1][key]
    with pytest.raises(ValueError, match=rf"episodes\[1\]\.{key} is missing, it must be"):
        load_results(write(tmp_path / "a", contents))


@pytest.mark.parametrize(
    ("episodes", "message"),
    [
        ([], r"episodes is \[\], it must be a list of at least one"),
        ({"0": 1}, r"episodes is \{'0': 1\}, it must be a list"),
        ([[0, 1.0, True]], r"episodes\[0\] is \[0, 1\.0, True\], it must hold seed"),
    ],
)
def test_episodes_of_another_form_are_refused(episodes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_results(write(tmp_path / "a", {"env": "pillar", "episodes": episodes}))


def test_a_start_is_there_once_per_task(tmp_path):
    contents = results(A)
    twice = [{**e, "task": task} for task in ("left", "right") for e in contents["episodes"]]
    load_results(write(tmp_path / "a", {**contents, "episodes": twice}))
    twice[9]["task"] = "left"
    with pytest.raises(
        ValueError, match=r"episodes\[9\] has seed 2 of task left, as episodes\[2\]"
    ):
        load_results(write(tmp_path / "b", {**contents, "episodes": twice}))


def test_older_files_can_be_compared_but_not_by_return(tmp_path):
    contents = results(A)
    for episode in contents["episodes"]:
        del episode["total"]
    folder = write(tmp_path / "a", contents)
    found = load_results(folder)
    assert Comparison.of(found, found).n == 7
    with pytest.raises(ValueError, match=r"episodes\[0\] lacks its total, which measure=return"):
        load_results(folder, measure="return")
