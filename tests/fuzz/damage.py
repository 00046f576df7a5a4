"""Damage that a checksum does not reveal: changed pickles, zip members and headers, as an attacker would write them."""

import io
import json
import struct
import zipfile

from hypothesis import strategies as st

from tests.fuzz import damaged

HUGE = b"\xff\xff\xff\x7f"
# Pieces of pickles: calls of functions, absurd lengths and memo entries, cycles, stacks without a mark.
OPCODES = st.sampled_from([
    b"cos\nsystem\n(S'touch touched'\ntR", b"cbuiltins\nopen\n(S'touched'\nS'w'\ntR", b"cbuiltins\neval\n", b"R", b"b",
    b"o", b"\x93", b"\x81", b"\x92", b"i", b"(ios\nsystem\n", b"c__main__\nx\n", b"ctorch\nload\n",
    b"ctorch\nones\n(I9\ntR", b"ctorch.serialization\nload\n", b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ccollections\nOrderedDict\n)R", b"X" + HUGE, b"\x8d" + HUGE * 2, b"T" + HUGE, b"B" + HUGE, b"\x8e" + HUGE * 2,
    b"\x96" + HUGE * 2, b"\x8b" + HUGE, b"r" + HUGE, b"j" + HUGE, b"\x95" + HUGE * 2, b"\x80\x05", b"Q", b"P0\n", b"0",
    b"(", b"((((", b"t", b"l", b"d", b"}", b"]", b"N", b".", b"2", b"22\x86\x86", b"]q\x01h\x01a", b"]2222eeee",
    b"I" + b"9" * 5000 + b"\n", b"G\x7f\xf0" + bytes(6), b"\x8a\xff" + b"\xff" * 255, b"u", b"s", b"e", b"h\x00",
    b"\x85" * 3000])


@st.composite
def damaged_zip(draw, data):
    """Draw a zip file of which a member, mostly the pickle, was changed, and whose checksums are right again."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    for _ in range(draw(st.integers(1, 2))):
        i = next((i for i, (name, _) in enumerate(members) if name.endswith("data.pkl")), 0)
        i = draw(st.sampled_from((i, i, i, i, *range(len(members)))))
        name, content = members[i]
        place = draw(st.integers(0, len(content)))
        kind = draw(st.sampled_from(("damage", "opcodes", "opcodes", "rename", "drop", "swap", "repeat")))
        if kind == "damage":
            members[i] = name, draw(damaged(content))
        elif kind == "opcodes":
            members[i] = name, content[:place] + b"".join(draw(st.lists(OPCODES, max_size=4))) + content[place:]
        elif kind == "rename":
            names = ("", "../" + name, "/" + name, name * 2, "data.pkl", name + "/")
            members[i] = draw(st.sampled_from(names)), content
        elif kind == "drop" and not name.endswith("data.pkl"):
            del members[i]
        elif kind == "swap":
            other = draw(st.sampled_from(members))
            members[i] = name, other[1]
        elif kind == "repeat":
            members.append((name, draw(damaged(content))))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name or "empty"), content)
    return file.getvalue()


@st.composite
def damaged_header(draw, data):
    """Draw a .safetensors file with other values in its header, whose length is right again."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    entry = header[draw(st.sampled_from(sorted(header.keys() - {"__metadata__"})))]
    numbers = st.one_of(st.integers(-2, 40), st.sampled_from([2**31, 2**62, 2**64, 10**30, 1.5, -1, True, None, "1"]))
    key = draw(st.sampled_from(("dtype", "shape", "data_offsets", "more")))
    entry[key] = draw(st.one_of(st.lists(numbers, max_size=4), st.just([2**31, 2**31, 4]), numbers, st.sampled_from(
        ["F32", "F64", "BF16", "F8_E4M3", "I64", "BOOL", "U64", "X", ""])))
    text = json.dumps(header).encode()
    text = draw(st.sampled_from((text, text, text + b" " * 7, text[:-1], b"[" * 5000 + text, b"\xef\xbb\xbf" + text)))
    length = draw(st.sampled_from((len(text), len(text), len(text), 0, 2**40, 2**63, len(text) + 9)))
    return struct.pack("<Q", length) + text + data[8 + size:]
