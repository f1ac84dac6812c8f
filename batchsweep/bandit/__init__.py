"""The search: policies, the loop that spends the budget, the ledger, and what it answers."""
