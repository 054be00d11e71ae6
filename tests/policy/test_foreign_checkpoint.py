"""A malformed foreign checkpoint ends in one error that names the file, whatever is wrong."""

import struct
import zipfile

import pytest
import torch

from policy.foreign_checkpoint import ForeignCheckpointError, load_foreign, plain

# Opcodes of a pickle: "(" ... "t" a tuple, "N" None, "K" a byte, "Q" a storage, "R" a call, "}" a
# dict, "s" an item of it, "b" a state given to what was made.
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
ONE = b"(K\x01t"


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x01tQ"


def rebuilt(storage=STORAGE, shape=ONE, stride=ONE, offset=b"K\x00"):
    """Opcodes of a tensor of one number."""
    return TENSOR + b"(" + storage + offset + shape + stride + b"tR"


def write(file, tensor):
    """A checkpoint whose only weight is made by these opcodes."""
    keys = b"}" + text("state_dicts") + b"}" + text("ema_model") + b"}" + text("w")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + keys + tensor + b"sss.")
        archive.writestr("a/data/0", struct.pack("<f", 2.5))
    return file


def read(file):
    return load_foreign(file, weights="ema_model")


def test_a_tensor_of_one_number_is_read(tmp_path):
    """The control of the tests below."""
    assert read(write(tmp_path / "a.ckpt", rebuilt())).tensors["w"].tolist() == [2.5]


@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param(rebuilt(storage=b"N"), id="storage is none"),
        pytest.param(rebuilt(storage=b"csome\nClass\n)R"), id="storage is a stand-in"),
        pytest.param(rebuilt() + b"}" + text("storage") + b"Nsb", id="storage is overwritten"),
        pytest.param(rebuilt(STORAGE + b"}" + text("key") + b"Nsb"), id="key is overwritten"),
        pytest.param(rebuilt(shape=b"(Nt"), id="shape of none"),
        pytest.param(rebuilt(shape=b"N"), id="no shape"),
        pytest.param(rebuilt(stride=b"(t"), id="stride of another length"),
        pytest.param(rebuilt(offset=b"J\xff\xff\xff\xff"), id="offset is negative"),
        pytest.param(rebuilt(storage=b"K\x01Q"), id="storage of another kind"),
        pytest.param(TENSOR + b")R", id="no arguments"),
    ],
)
def test_a_malformed_tensor_is_refused(tmp_path, tensor):
    file = write(tmp_path / "a.ckpt", tensor)
    with pytest.raises(ForeignCheckpointError, match=str(file)):
        read(file)


def set_in_headers(file, *, local, central, value):
    """Write a number of two bytes into the headers of all records of an archive."""
    content = bytearray(file.read_bytes())
    for mark, offset in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        at = content.find(mark)
        while at >= 0:
            content[at + offset : at + offset + 2] = struct.pack("<H", value)
            at = content.find(mark, at + 1)
    file.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"local": 6, "central": 8, "value": 1}, "is damaged: .*encrypted"),
        ({"local": 8, "central": 10, "value": 99}, "is damaged: .*compression method"),
    ],
)
def test_an_archive_that_cannot_be_opened_is_refused(tmp_path, header, message):
    file = write(tmp_path / "a.ckpt", rebuilt())
    set_in_headers(file, **header)
    with pytest.raises(ForeignCheckpointError, match=message):
        read(file)


def nested(depth):
    """A list that names itself twice at every depth: few bytes, 2^depth values."""
    value: list = []
    for _ in range(depth):
        value = [value, value]
    return value


def test_a_configuration_that_names_itself_too_often_is_refused(tmp_path):
    file = tmp_path / "a.ckpt"
    torch.save({"state_dicts": {"ema_model": {}}, "cfg": nested(60)}, file)
    assert file.stat().st_size < 10_000
    with pytest.raises(ForeignCheckpointError, match="more than 100000 values"):
        read(file)
    itself: list = []
    itself.append(itself)
    torch.save({"state_dicts": {"ema_model": {}}, "cfg": itself}, file)
    with pytest.raises(ForeignCheckpointError, match="is damaged"):
        read(file)


def test_every_value_of_a_configuration_counts():
    assert plain([1, [2]], max_values=4) == [1, [2]]
    with pytest.raises(ValueError, match="more than 3 values"):
        plain([1, [2]], max_values=3)
    assert plain(nested(10)) == nested(10)  # 2047 values


def test_a_tensor_of_no_storage_is_told_without_all_of_it(tmp_path):
    """What stands in its place may be of any size when it is written out."""
    twice = [b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60)]  # list i + 1 holds i twice
    doubled = b"]q\x00" + b"".join(twice)
    file = write(tmp_path / "a.ckpt", rebuilt(storage=doubled + b"Q"))
    with pytest.raises(ForeignCheckpointError, match="a tensor refers to a list") as caught:
        read(file)
    assert len(str(caught.value)) < 1000
