"""What every client has to see of the conformance fixture, whatever stands between the two."""

TEXT_TOOL, TEXT = "test_simple_text", "This is a simple text response for testing."
PROGRESS_TOOL, PROGRESS = "test_tool_with_progress", [0, 50, 100]
PROGRESS_TEXT = "Tool with progress executed successfully"
ELICITING_TOOL, QUESTION = "test_elicitation", {"message": "Who are you?"}
ANSWER = {"username": "ada", "email": "ada@example.com"}
ANSWERED = 'User response: action=accept, content={"username": "ada", "email": "ada@example.com"}'
LIMIT = 60  # seconds for one client in one era
MODERN = "2026-07-28"


class Miss(Exception):
    """Something that a client should have seen, and did not."""


def same(what, seen, wanted):
    if seen != wanted:
        raise Miss(f"{what}: saw {seen!r}, wanted {wanted!r}")
    print(f"  ok  {what}", flush=True)


def listed(names):
    missing = {TEXT_TOOL, PROGRESS_TOOL, ELICITING_TOOL} - set(names)
    same("tools that are not listed", sorted(missing), [])
