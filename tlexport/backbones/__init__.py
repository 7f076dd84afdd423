"""Where knowledge comes from: one file per source of networks."""
