"""The whole road: one config, executors that place the work, the command line, cluster jobs and the offline demo."""
