"""The tables of the pages under ``docs/worlds``, each made by one command."""
