"""The choice of a place: the first that is large enough, and why."""

import pytest

from data.memory import Free
from data.place import DISK_RESERVE, Disk, PlaceError, Reading, choose_place

GB = 10**9
SIZES = {"camera": 8 * GB, "state": 3 * GB, "action": GB}


def choose(reading=None, *, device=0, host=0, missing=0, free=100 * GB, asked=None):
    def disk(names):
        if asked is not None:
            asked.append(set(names))
        return Disk(missing, free)

    return choose_place(
        SIZES,
        pictures={"camera"},
        reading=reading or Reading(cache="folder"),
        device_free=Free(device * GB, "free on the card"),
        host_free=Free(host * GB, "left by the group"),
        disk=disk,
    )


@pytest.mark.parametrize(
    ("device", "host", "place"),
    [(24, 0, "device"), (23, 24, "host"), (23, 23, "cache"), (0, 100, "host"), (0, 0, "cache")],
)
def test_the_fastest_place_that_is_large_enough_is_chosen(device, host, place):
    choice = choose(device=device, host=host)
    assert choice.place == place
    assert "12.000 GB needed" in choice.reason
    assert f"{host / 2:.3f} GB allowed on the host" in choice.reason or place == "device"


def test_the_share_of_the_memory_that_may_be_used_is_a_setting():
    assert choose(Reading(memory_fraction=1.0), device=12).place == "device"
    assert choose(Reading(memory_fraction=0.99), device=12).place == "store"


def test_numbers_stay_in_memory_as_long_as_they_fit_and_pictures_do_not():
    asked = []
    assert choose(host=20, asked=asked).resident == {"state", "action"}
    assert asked == [{"camera"}]
    assert choose(host=7).resident == {"action"}
    assert choose(host=0).resident == set()
    assert choose(device=30).resident == set(SIZES)


def test_a_cache_is_taken_where_its_disk_has_room():
    enough = 5 * GB + DISK_RESERVE
    assert choose(missing=5 * GB, free=enough).place == "cache"
    choice = choose(missing=5 * GB, free=enough - 1)
    assert choice.place == "store"
    assert "a cache does not fit (5.000 GB to be written, 6.000 GB free" in choice.reason
    assert choose(missing=0, free=0).place == "cache"  # It is there already.
    choice = choose(Reading())
    assert choice.place == "store"
    assert "reading.cache names no folder" in choice.reason


def test_a_folder_that_cannot_be_used_is_told_or_refused():
    def disk(names):
        raise PermissionError("no")

    def choose(reading):
        free = Free(0, "")
        return choose_place(
            SIZES, pictures={}, reading=reading, device_free=free, host_free=free, disk=disk
        )

    choice = choose(Reading(cache="folder"))
    assert choice.place == "store"
    assert "no cache can be built: no" in choice.reason
    with pytest.raises(PlaceError, match=r"reading.cache=folder cannot be used \(no\): give anot"):
        choose(Reading(place="cache", cache="folder"))


@pytest.mark.parametrize("place", ["device", "host", "cache", "store"])
def test_any_place_can_be_asked_for(place):
    choice = choose(Reading(place=place, cache="folder"), device=13, host=13)
    assert choice.place == place
    if place != "cache":
        assert "as configured" in choice.reason


def test_a_place_that_is_asked_for_and_too_small_is_refused():
    with pytest.raises(PlaceError, match=r"'device', but 12.000 GB are needed and 11.000 GB are f"):
        choose(Reading(place="device"), device=11, host=30)
    with pytest.raises(PlaceError, match=r"'host', but .* 11.000 GB are left by the group: set r"):
        choose(Reading(place="host"), device=30, host=11)
    with pytest.raises(PlaceError, match=r"in folder there are 5.000 GB to be written, 1.000 GB"):
        choose(Reading(place="cache", cache="folder"), missing=5 * GB, free=GB)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"place": "disk"}, "'disk', choose one of auto, device, host, cache, store"),
        ({"place": "cache"}, "reading.cache names no folder"),
        ({"memory_fraction": 1.1}, r"is 1.1, it must be in 0..1"),
        ({"memory_fraction": float("nan")}, r"is nan, it must be in 0..1"),
        ({"ahead": -1}, "reading.ahead is -1, it must be at least 0"),
        ({"threads": 0}, "reading.threads is 0, it must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Reading(**settings)
