"""@NAME@: rows with the columns `question` and `answer` become conversations."""

import json

from trainer_plugin import Err, interface
from wit_world.exports.formatter import BadRow, Outcome_Bad, Outcome_Sample, Outcome_Skip
from wit_world.imports.types import Content_Text, Conversation, Message


@interface
class Formatter:
    def configure(self, settings: str) -> None:
        """Called once in each instance, before anything else. The host has checked the settings against settings.json."""
        self.system = json.loads(settings).get("system")
        if self.system == "":
            raise Err("`system` is empty; leave it out for no system message")

    def format(self, rows: list[str]):
        """One outcome per row, in order. Each row is a JSON object."""
        return [self.outcome(json.loads(row)) for row in rows]

    def outcome(self, row):
        if not isinstance(row, dict):
            return Outcome_Bad(BadRow("", "the row is no JSON object"))
        for column in ("question", "answer"):
            if not isinstance(row.get(column), str):
                return Outcome_Bad(BadRow(f"/{column}", "a string is needed"))
        if not row["answer"]:
            return Outcome_Skip("no answer")
        messages = [message("user", row["question"]), message("assistant", row["answer"])]
        if self.system is not None:
            messages.insert(0, message("system", self.system))
        return Outcome_Sample(Conversation(messages=messages, tools=[], template_args=None, weight=1.0))


def message(role: str, text: str) -> Message:
    """A message of nothing but text. Without a weight, the recipe decides what is learnt from: as a rule the assistant's words."""
    return Message(
        role=role,
        content=Content_Text(text),
        reasoning_content=None,
        tool_calls=[],
        tool_call_id=None,
        name=None,
        weight=None,
        spans=[],
    )
