"""Scripts to start with torchrun: lowcomm under a loop or trainer of your own."""
