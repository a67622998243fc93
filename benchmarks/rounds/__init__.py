"""What a round costs: time, CPU, memory and bytes, with real processes and no training."""
