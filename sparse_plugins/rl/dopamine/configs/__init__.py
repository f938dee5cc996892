"""Complete gin configurations; include one from your own file as 'sparse_plugins/rl/dopamine/configs/<name>.gin'."""
