"""`lowcomm plan`: the command around the model in lowcomm.plan."""
