"""What other projects import to test against refbn: the hypothesis strategies in `refbn.testing.strategies`."""
