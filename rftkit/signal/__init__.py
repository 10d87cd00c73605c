"""The signal gate: before training, is there anything to learn from?"""
