"""@NAME@: a shopping list that the model can write on."""

import json

from trainer_plugin import interface, resource
from wit_world.exports.executor import Outcome_Ok, Outcome_ToolError, Tool

ADD_ITEM = {
    "type": "object",
    "properties": {
        "item": {"type": "string", "description": "What to buy."},
        "quantity": {"type": "integer", "description": "How many; 1 if left out."},
    },
    "required": ["item"],
    "additionalProperties": False,
}
LIST_ITEMS = {"type": "object", "properties": {}, "additionalProperties": False}


@interface
class Executor:
    def tools(self, settings: str) -> list[Tool]:
        """The tools on offer, in the order in which the model sees them."""
        return [
            Tool("add_item", "Puts something on the shopping list.", json.dumps(ADD_ITEM), mutates=True),
            Tool("list_items", "Reads the shopping list.", json.dumps(LIST_ITEMS), mutates=False),
        ]


class ToolError(Exception):
    """A refusal in words for the model, which can try again. (Any other exception fails the episode.)"""


@resource
class Session:
    """One episode: everything that it remembers lies in the object."""

    def __init__(self):
        self.items = []

    @classmethod
    def open(cls, context) -> "Session":
        return cls()

    def call(self, calls):
        """Executes calls in order: one outcome per call."""
        return [self.outcome(call.name, json.loads(call.arguments)) for call in calls]

    def outcome(self, name, arguments):
        try:
            if name == "add_item":
                return Outcome_Ok(to_json(self.add_item(arguments)))
            if name == "list_items":
                return Outcome_Ok(to_json({"items": self.items}))
            raise ToolError(f"there is no tool {name}")
        except ToolError as error:
            return Outcome_ToolError(str(error))

    def add_item(self, arguments):
        item, quantity = arguments.get("item"), arguments.get("quantity", 1)
        if not isinstance(item, str):
            raise ToolError("item must be a string")
        if not isinstance(quantity, int) or quantity < 1:
            raise ToolError("quantity must be at least 1")
        self.items.append({"item": item, "quantity": quantity})
        return {"items": len(self.items)}

    def state_digest(self) -> str | None:
        """A text by which two episodes can be compared."""
        return to_json(self.items)


def to_json(value) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
