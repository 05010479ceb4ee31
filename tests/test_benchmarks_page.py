"""The page of the benchmarks says what its committed numbers say."""

import pathlib

from benchmarks import picture, rules


def test_the_page_shows_what_was_measured(tmp_path):
    """Table and picture of the README are those of the committed numbers."""
    data = picture.measured()
    named = [name for names in picture.FAMILIES.values() for name in names]
    assert sorted(named) == sorted(rules.RULES)
    for device in ("cpu", "gpu"):
        found = {record["rule"] for record in data[device]["rules"]}
        assert found == {*picture.BESIDE, *named}
        assert {"machine", "versions", "command"} <= set(data[device]["source"])
    page = (pathlib.Path(picture.__file__).parent / "README.md").read_text("utf-8")
    rows = [x for x in picture.table(data).splitlines() if x.startswith("|")]
    assert len(rows) == 2 + len(named) + len(picture.BESIDE)
    assert [row for row in rows if row not in page] == []
    picture.draw(data, tmp_path / "rules.png")
    assert (tmp_path / "rules.png").read_bytes().startswith(b"\x89PNG")
