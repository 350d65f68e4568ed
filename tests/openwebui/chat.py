"""A chat as the browser drives it: messages are posted, and Open WebUI runs the tools."""

import json
import time
import uuid

from model import NAME

ANSWER = 180  # seconds that one answer may take


class Chat:
    """One chat of one user with some of the tools switched on."""

    def __init__(self, user, tool_ids):
        self._user, self._tools = user, tool_ids
        self.id, self._last, self._history = None, None, []

    def begin(self, *steps, files=()):
        """Sends a message and does not wait; gives the id of the answer."""
        content = json.dumps([{"tool": tool, "arguments": arguments} for tool, arguments in steps])
        asked, answer = str(uuid.uuid4()), str(uuid.uuid4())
        message = {
            "id": asked, "parentId": self._last, "childrenIds": [], "role": "user", "content": content,
            "timestamp": int(time.time()), "models": [NAME],
        }
        if files:
            message["files"] = list(files)
        self._history.append({"role": "user", "content": content})
        form = {
            "model": NAME, "stream": True, "messages": self._history, "tool_ids": self._tools,
            "parent_id": self._last, "user_message": message, "session_id": str(uuid.uuid4()),
            "message_ids": [{"model_id": NAME, "message_id": answer}], "files": list(files),
            "features": {}, "params": {"function_calling": "native"}, "background_tasks": {},
        }
        if self.id:
            form["chat_id"] = self.id
        begun = self._user.post("/api/chat/completions", form)
        self.id, self._last = self.id or begun["chat_id"], answer
        return answer

    def say(self, *steps, files=()):
        """Sends a message and gives the finished answer."""
        answer = self.wait(self.begin(*steps, files=files))
        self._history.append({"role": "assistant", "content": answer.get("content") or ""})
        return answer

    def message(self, id):
        history = self._user.get(f"/api/v1/chats/{self.id}")["chat"]["history"]
        return history["messages"].get(id, {})

    def wait(self, id, until=lambda message: message.get("done")):
        end = time.monotonic() + ANSWER
        while time.monotonic() < end:
            message = self.message(id)
            if until(message):
                return message
            time.sleep(0.3)
        raise AssertionError(f"the answer did not come: {message}")

    def stop(self):
        return self._user.post(f"/api/tasks/chat/{self.id}/stop", {})


def text(message):
    """Everything that an answer says, what the tools said included."""
    said = [message.get("content") or ""]
    for item in message.get("output") or []:
        said.append(json.dumps(item, ensure_ascii=False))
    return "\n".join(said)


def results(message):
    """What the tools answered, in their order."""
    items = message.get("output") or []
    outputs = [item["output"] for item in items if item.get("type") == "function_call_output"]
    return ["".join(part.get("text", "") for part in parts) for parts in outputs]
