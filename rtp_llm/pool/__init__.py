"""What every pool of workers is as a Serve deployment; `prefill` and `decode` say how theirs differ."""
