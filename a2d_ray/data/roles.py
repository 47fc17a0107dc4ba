"""Who speaks in a conversation: what data sets and callers call it, and what templates do."""

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
"""Of OpenAI's messages and of ShareGPT's."""

TOOL_ROLES = ("tool", "function", "ipython", "tool_call", "tool_response", "observation")


def find_role(name: object) -> str | None:
    """``system``, ``user`` or ``assistant`` for any of its names in any case; None: unknown."""
    return ROLES.get(name.strip().lower()) if isinstance(name, str) else None


def is_tool(name: object) -> bool:
    """Whether a role is that of a tool's call or result."""
    return isinstance(name, str) and name.strip().lower() in TOOL_ROLES
