"""A model's files: configuration, weights, tokenizer, chat template; and the text that tokens become."""
