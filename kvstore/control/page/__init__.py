"""The web page of the control plane: it shows what `Admin` answers, and changes nothing."""
