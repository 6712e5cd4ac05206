"""The embedded default: a synthetic clinic and a tiny Qwen2.5-VL, so that everything runs on two CPU cores."""
