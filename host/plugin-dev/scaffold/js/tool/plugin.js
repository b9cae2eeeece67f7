// @NAME@: a shopping list that the model can write on.

import { exported } from "./trainer_plugin.js";

/** @import { Call, Context, Executor, Outcome } from "./types" */

const ADD_ITEM = {
  type: "object",
  properties: {
    item: { type: "string", description: "What to buy." },
    quantity: { type: "integer", description: "How many; 1 if left out." },
  },
  required: ["item"],
  additionalProperties: false,
};
const LIST_ITEMS = { type: "object", properties: {}, additionalProperties: false };

// A refusal in words for the model, which can try again. (Any other exception fails the episode.)
class ToolError extends Error {}

// One episode: everything that it remembers lies in the object.
class Session {
  /** @type {{ item: string; quantity: number }[]} */
  items = [];

  /** @param {Context} context */
  static open(context) {
    return new Session();
  }

  /**
   * Executes calls in order: one outcome per call.
   * @param {Call[]} calls
   */
  call(calls) {
    return calls.map(({ name, arguments: args }) => this.outcome(name, JSON.parse(args)));
  }

  // A text by which two episodes can be compared.
  stateDigest() {
    return JSON.stringify(this.items);
  }

  /** @returns {Outcome} */
  outcome(name, args) {
    try {
      return { tag: "ok", val: JSON.stringify(this.run(name, args)) };
    } catch (error) {
      if (error instanceof ToolError) return { tag: "tool-error", val: error.message };
      throw error;
    }
  }

  run(name, args) {
    switch (name) {
      case "add_item":
        return this.addItem(args);
      case "list_items":
        return { items: this.items };
      default:
        throw new ToolError(`there is no tool ${name}`);
    }
  }

  addItem({ item, quantity = 1 }) {
    if (typeof item !== "string") throw new ToolError("item must be a string");
    if (!Number.isInteger(quantity) || quantity < 1) throw new ToolError("quantity must be at least 1");
    this.items.push({ item, quantity });
    return { items: this.items.length };
  }
}

/** @type {Executor} */
export const executor = exported({
  // The tools on offer, in the order in which the model sees them.
  tools(settings) {
    return [
      {
        name: "add_item",
        description: "Puts something on the shopping list.",
        parameters: JSON.stringify(ADD_ITEM),
        mutates: true,
      },
      {
        name: "list_items",
        description: "Reads the shopping list.",
        parameters: JSON.stringify(LIST_ITEMS),
        mutates: false,
      },
    ];
  },
  Session,
});
