"""The demo task: which gene explains a patient's features? Nothing outside knows what a gene is."""
