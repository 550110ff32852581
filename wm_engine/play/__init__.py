"""A page that plays a run's dreams in a browser: ``wm-engine play``, the extra ``[play]``."""
