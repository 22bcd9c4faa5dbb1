"""Providers, simulators of them, and the consumer that executes attempts."""
