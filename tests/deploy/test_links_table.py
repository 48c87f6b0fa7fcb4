"""The table of links on the page: both ends of each in one row, and no codec where there is none."""

from __future__ import annotations

from coordinator.timelines import RecordedStep
from deploy.links_table import MAX_ROWS, links_table, two_ended
from scheduler.link_use import LinkUse
from scheduler.timeline import Timeline

KBIT = "kbit:bits=4,rounding=stochastic"
USES = (
    LinkUse(0, 1, "activation", KBIT, 1000, 4000, 0.25, 0.0, 0.031, 0),
    LinkUse(1, 0, "activation", KBIT, 0, 0, 0.0, 0.5, 0.0, 2),
    LinkUse(1, 0, "gradient", "identity", 4000, 4000, 0.001, 0.0, 0.0, 0),
    LinkUse(0, 1, "gradient", "identity", 0, 0, 0.0, 0.001, 0.0, 0),
    LinkUse(2, -1, "reduced", "feedback", 0, 0, 0.125, 0.0, 0.02, 0),
    LinkUse(2, 0, "reduced", "feedback", 500, 4000, 0.0, 0.0, 0.0, 0),
    LinkUse(0, 2, "reduced", "feedback", 0, 0, 0.0, 0.0625, 0.0, 0),
)


def recorded(uses: tuple[LinkUse, ...]) -> RecordedStep:
    return RecordedStep(6, Timeline(3, ()), uses)


def test_a_link_is_what_its_two_ends_saw() -> None:
    sent, plain, reduced = two_ended(USES)
    assert (sent.rank, sent.peer, sent.encode_s, sent.decode_s, sent.resends) == (0, 1, 0.25, 0.5, 2)
    assert (plain.rank, plain.decode_s) == (1, 0.001)
    assert (reduced.encode_s, reduced.decode_s, reduced.relative_error) == (0.125, 0.0625, 0.02)


def test_the_table_names_devices_and_says_what_the_codec_did() -> None:
    table = links_table(recorded(USES), ("paris", "tokyo", "lima"))
    assert table.heading == "What links carried in step 7"
    assert table.columns[-1] == "sent again"
    first, second, third = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert (first["link"], first["what"], first["bytes"]) == (
        "paris → tokyo",
        "activation",
        "4.0 kB → 1.0 kB",
    )
    assert (first["codec"], first["ratio"], first["error"]) == (KBIT, "4.00", "3.10%")
    assert (first["encoding"], first["decoding"]) == ("250 ms", "500 ms")
    assert first["sent again"] == "2"
    assert (second["codec"], second["error"], second["encoding"], second["decoding"]) == ("none", "", "", "")
    assert second["bytes"] == "4.0 kB"
    assert (third["link"], third["what"]) == ("lima → paris", "reduced gradient")


def test_a_table_of_many_links_shows_those_that_carried_most() -> None:
    uses = tuple(LinkUse(i, i + 1, "activation", "identity", i + 1, i + 1, 0, 0, 0, 0) for i in range(50))
    table = links_table(recorded(uses), ())
    assert table.heading.endswith(f"the {MAX_ROWS} of 50 that carried most")
    assert len(table.rows) == MAX_ROWS
    assert table.rows[0][0] == "rank 10 → rank 11"
    assert "sent again" not in table.columns
