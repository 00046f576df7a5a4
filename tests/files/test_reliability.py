"""The table of recorded cases is that of the cases, in whichever order the workers of a run end."""

from itertools import permutations

from tests.helpers import reliability


def test_the_table_does_not_hang_on_the_order_of_the_workers(monkeypatch, tmp_path):
    cases = [("Downloads", "a name", "refused"), ("Downloads", "a name", "read"), ("Fuzzing", "a name", "refused")]
    document = tmp_path / "RELIABILITY.md"
    monkeypatch.setattr(reliability, "DOCUMENT", document)
    for order in permutations(cases):
        recorder = reliability.Recorder()
        for case in order:
            recorder(*case, "seen")
        monkeypatch.setattr(reliability, "RECORDER", recorder)
        document.write_text(f"before\n{reliability.BEGIN}\n")
        assert reliability.stale(all_ran=True) == ["a name", "a name"]
        reliability.write(document)
        assert document.read_text().count("| a name |") == 3 and reliability.stale(all_ran=True) == []
