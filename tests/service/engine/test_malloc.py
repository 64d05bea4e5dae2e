"""When memory is given back."""

from service.engine.malloc import Trimmer, resident, trim


def test_it_is_given_back_after_growth_and_not_otherwise() -> None:
    megabytes = [500.0]
    trimmed: list[float] = []

    def give_back() -> None:
        trimmed.append(megabytes[0])
        megabytes[0] = max(500.0, megabytes[0] - 1000)

    trimmer = Trimmer(lambda: int(megabytes[0] * 1e6), give_back)
    for held in (500, 600, 660, 1500, 520, 660, 670, 1700, 760, 800, 906, 500, 660, 670):
        megabytes[0] = held
        trimmer()
    assert trimmed == [500, 1500, 670, 1700, 906, 670], "at first, and at each growth by a fifth and 64 MB"


def test_what_a_process_holds_is_known_and_trimming_is_safe() -> None:
    before = resident()
    assert before > 10_000_000
    kept = bytearray(b"x" * 50_000_000)
    assert resident() > before + 40_000_000
    del kept
    trim()
    assert resident() < before + 40_000_000
