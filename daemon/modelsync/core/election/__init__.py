"""Who may write: the lease, the epochs, the promises of a majority, and the state machine over them."""
