"""Measures of imagination, planning and speed, and the page that reports them."""
