"""@NAME@: asks the `question` of each row, and looks for what the column `expected` says in the answer."""

import json
import math
import string

from trainer_plugin import interface
from wit_world.exports.metric import (
    Generation,
    Plan_Ask,
    Plan_Bad,
    Request_Generate,
    Response_Answers,
    Response_Failed,
    SampleScore,
    Summary,
    Value_Boolean,
    Value_Unscored,
)
from wit_world.imports.types import Content_Text, Conversation, Message

LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


@interface
class Metric:
    def configure(self, settings: str) -> None:
        """Called once in each instance, before anything else. The host has checked the settings against settings.json."""
        self.ignore_case = json.loads(settings).get("ignore_case", False)

    def scoring_version(self) -> str:
        """To be raised with each change of the scores: reports compare only if it is equal."""
        return "1"

    def prepare(self, rows: list[str]):
        """What to ask of the model: one plan per row, in order."""
        return [self.plan(json.loads(row)) for row in rows]

    def plan(self, row):
        if not isinstance(row, dict):
            return Plan_Bad(("", "the row is no JSON object"))
        for column in ("question", "expected"):
            if not isinstance(row.get(column), str):
                return Plan_Bad((f"/{column}", "a string is needed"))
        conversation = Conversation([user(row["question"])], tools=[], template_args=None, weight=1.0)
        return Plan_Ask(
            Request_Generate(Generation(conversation, enable_thinking=None, repeats=1, max_new_tokens=None, stop=[]))
        )

    def score(self, items):
        """The scores of each item, in order: here one."""
        return [[self.score_one(json.loads(item.row), item.response)] for item in items]

    def score_one(self, row, response) -> SampleScore:
        if isinstance(response, Response_Failed):
            return unscored(response.value)
        if not isinstance(response, Response_Answers) or not response.value:
            return unscored("there is no answer")
        expected = row.get("expected") if isinstance(row, dict) else None
        if not isinstance(expected, str):
            return unscored("the row has no string `expected`")
        found = self.folded(expected) in self.folded(response.value[0].text)
        return SampleScore("contains", Value_Boolean(found), f'"{expected}" is {"" if found else "not "}in the answer')

    def folded(self, text: str) -> str:
        return text.translate(LOWER) if self.ignore_case else text

    def aggregate(self, samples) -> list[Summary]:
        """Sums up the scores of all samples."""
        values = [
            score.value.value
            for scores in samples
            for score in scores
            if score.name == "contains" and isinstance(score.value, Value_Boolean)
        ]
        if not values:
            return []
        share = sum(values) / len(values)
        return [Summary("accuracy", share, math.sqrt(share * (1 - share) / len(values)), higher_is_better=True)]


def unscored(why: str) -> SampleScore:
    return SampleScore("contains", Value_Unscored(), why)


def user(text: str) -> Message:
    """A question of nothing but text."""
    return Message(
        role="user",
        content=Content_Text(text),
        reasoning_content=None,
        tool_calls=[],
        tool_call_id=None,
        name=None,
        weight=None,
        spans=[],
    )
