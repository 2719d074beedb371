"""Patches: each wraps one call of torch and tells the StepTracker. PATCHES is in hooks.py."""
