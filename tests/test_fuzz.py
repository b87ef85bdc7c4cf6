"""A short run of the fuzzing of all readers: `make fuzz` is the long one, fuzz.py says how to repeat a case."""

from fuzz import KINDS, failures, run_cases


def test_damaged_inputs_end_in_a_sane_result_or_in_one_line():
    rows = run_cases(60, first_seed=100)
    assert len(rows) == 60 and {row["kind"] for row in rows} == set(KINDS)
    assert not failures(rows), failures(rows)
    assert {row["ending"] for row in rows} == {"ok", "refused"}


def test_failures_would_be_seen(tmp_path):
    """A reader that raises something else, hangs or crashes is reported; the next case runs in a new process."""
    code = "import json, sys\nfor line in sys.stdin:\n"
    code += "    if ' 1' in line: sys.exit(3)\n    print(json.dumps({'ending': 'KeyError', 'message': '', 'what': ''}), flush=True)\n"
    (tmp_path / "fuzz.py").write_text(code)
    import fuzz

    here, fuzz.HERE = fuzz.HERE, tmp_path
    try:
        rows = run_cases(len(KINDS) + 2, root=tmp_path)
    finally:
        fuzz.HERE = here
    assert [row["ending"] for row in failures(rows)] == ["KeyError"] * len(KINDS) + ["crash 3"] * 2
