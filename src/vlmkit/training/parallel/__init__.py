"""How a model is divided over ranks; model code itself reads like one device."""
