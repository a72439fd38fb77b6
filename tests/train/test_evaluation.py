"""Messages of details are indented, and the result stays."""

from triptych.train.evaluation import indent


def test_details_are_indented_and_the_result_is_returned():
    def work():
        yield "first"
        yield "second"
        return 7

    def whole():
        result = yield from indent(work())
        yield f"got {result}"

    assert list(whole()) == ["  first", "  second", "got 7"]
