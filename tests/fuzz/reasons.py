"""What a refusal must be."""


def assert_one_line(error: Exception, *parts: str) -> None:
    """One line that says something, and holds every part."""
    message = str(error)
    assert message.strip()
    assert len(message.splitlines()) == 1, message
    for part in parts:
        assert part in message, message
