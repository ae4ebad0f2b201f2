"""What annotation has cost, and whether one more request fits the budget."""

from __future__ import annotations

from dataclasses import dataclass

from privileged.model_settings import BudgetConfig


@dataclass
class Spending:
    """Tokens that were paid for, and those that requests in flight may still cost at most."""

    budget: BudgetConfig
    prompt_tokens: int = 0
    reply_tokens: int = 0
    reserved_prompt: int = 0
    reserved_reply: int = 0

    def admits(self, prompt_tokens: int, reply_tokens: int) -> bool:
        """Whether a request of this size keeps within the budget, even if all in flight cost what they may at most."""
        prompt = self.prompt_tokens + self.reserved_prompt + prompt_tokens
        reply = self.reply_tokens + self.reserved_reply + reply_tokens
        within_tokens = self.budget.tokens is None or prompt + reply <= self.budget.tokens
        within_money = self.budget.money is None or money(self.budget, prompt, reply) <= self.budget.money
        return within_tokens and within_money

    def reserve(self, prompt_tokens: int, reply_tokens: int) -> None:
        self.reserved_prompt += prompt_tokens
        self.reserved_reply += reply_tokens

    def release(self, prompt_tokens: int, reply_tokens: int) -> None:
        self.reserve(-prompt_tokens, -reply_tokens)

    def pay(self, prompt_tokens: int, reply_tokens: int) -> None:
        self.prompt_tokens += prompt_tokens
        self.reply_tokens += reply_tokens

    def __str__(self) -> str:
        """
        >>> str(Spending(BudgetConfig(money=5.0, price_input=1.0, price_output=2.0), 1_000_000, 500_000))
        '1,500,000 tokens, 2.00 of 5.00'
        """
        tokens = f"{self.prompt_tokens + self.reply_tokens:,}"
        tokens += f" of {self.budget.tokens:,} tokens" if self.budget.tokens is not None else " tokens"
        if not self.budget.price_input and not self.budget.price_output:
            return tokens
        cost = f"{money(self.budget, self.prompt_tokens, self.reply_tokens):.2f}"
        limit = f" of {self.budget.money:.2f}" if self.budget.money is not None else ""
        return f"{tokens}, {cost}{limit}"


def money(prices: BudgetConfig, prompt_tokens: float, reply_tokens: float) -> float:
    """
    >>> money(BudgetConfig(price_input=1.0, price_output=4.0), 2_000_000, 500_000)
    4.0
    """
    return (prompt_tokens * prices.price_input + reply_tokens * prices.price_output) / 1e6
